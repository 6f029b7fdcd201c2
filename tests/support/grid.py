"""A Grid whose nodes answer in this process, with every message really serialised and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedapt.federation.flower.internals import set_identity, set_message_id
from fedapt.federation.flower.network.content import decode, encode

set_identity(1)


@dataclass
class DirectGrid(Grid):
    """Node -> app.

    Attributes:
        down, up: all that was sent, as bytes.
        change: what happens to a reply on its way: (node, reply) -> reply, or None for no reply.
        contexts: what a node remembers from one message to the next.
    """

    apps: dict[int, ClientApp]
    change: Callable[[int, Message], Message | None] = lambda node, reply: reply
    down: list[bytes] = field(default_factory=list)
    up: list[bytes] = field(default_factory=list)
    replies: list[Message] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    contexts: dict[int, Context] = field(default_factory=dict)
    _waiting: dict[str, Message] = field(default_factory=dict)
    _numbers: Iterable[int] = field(default_factory=count)

    def set_run(self, run: object) -> None:
        raise AssertionError

    @property
    def run(self) -> object:
        raise AssertionError

    def create_message(self, *_: object, **__: object) -> Message:
        raise AssertionError

    def send_and_receive(self, *_: object, **__: object) -> Iterable[Message]:
        raise AssertionError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            number = str(next(self._numbers))  # type: ignore[call-overload]
            set_message_id(message, number)
            ids.append(number)
            arrived = send(message, self.down)
            set_message_id(arrived, number)
            self.messages.append(arrived)
            node = message.metadata.dst_node_id
            if node not in self.apps:
                continue
            fresh = Context(1, node, UserConfig(), RecordDict(), UserConfig())
            context = self.contexts.setdefault(node, fresh)
            reply = self.change(node, self.apps[node](arrived, context))
            if reply is not None:
                self._waiting[number] = send(reply, self.up)
                self.replies.append(self._waiting[number])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._waiting.pop(i) for i in message_ids if i in self._waiting]


def send(message: Message, wire: list[bytes]) -> Message:
    """The message as it arrives: made of the bytes that were sent."""
    if message.has_error():
        return message
    wire.append(encode(message.content))
    return Message(decode(wire[-1]), metadata=message.metadata)  # type: ignore[call-overload]
