"""Flower's Grid over a mailbox; the engine sends messages through it as in a simulation."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Error, Message
from flwr.serverapp import Grid

from fedapt.federation.flower.internals import set_identity, set_message_id
from fedapt.federation.flower.network.content import decode, encode
from fedapt.federation.flower.network.mailbox import Mailbox

_POLL_S = 0.1


class MailboxGrid(Grid):
    """The server's nodes as a Flower Grid.

    Args:
        mailbox: the server's mailbox.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._run = secrets.randbits(62)
        self._sent: dict[str, Message] = {}
        set_identity(self._run)

    def name_nodes(self) -> Mapping[int, str]:
        """Number of each connected node -> name of its key."""
        return self._mailbox.online()

    def get_node_ids(self) -> Iterable[int]:
        """Numbers of the connected nodes."""
        return list(self._mailbox.online())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and return their numbers."""
        now = time.time()
        # nobody waits for answers to these messages
        for number, message in list(self._sent.items()):
            if message.metadata.created_at + message.metadata.ttl < now:
                del self._sent[number]
        ids = []
        for message in messages:
            metadata = message.metadata
            number = self._mailbox.put(
                metadata.dst_node_id,
                metadata.message_type,
                metadata.group_id,
                self._run,
                metadata.ttl,
                encode(message.content),
            )
            set_message_id(message, number)
            self._sent[number] = message
            ids.append(number)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that have arrived."""
        replies = []
        for number, body in self._mailbox.collect(message_ids):
            message = self._sent.pop(number)
            try:
                replies.append(Message(decode(body), reply_to=message))
            except ValueError as error:
                reason = f"a reply that cannot be read: {error}"
                replies.append(Message(Error(0, reason), reply_to=message))
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, and wait for all replies or for `timeout` seconds."""
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            for reply in self.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            if waiting:
                time.sleep(_POLL_S)
        return replies

    def set_run(self, run: Any) -> None:
        """Not supported: a server trains one run at a time."""
        raise NotImplementedError

    @property
    def run(self) -> Any:
        """Not supported: a server trains one run at a time."""
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Not supported: Flower has deprecated it."""
        raise NotImplementedError
