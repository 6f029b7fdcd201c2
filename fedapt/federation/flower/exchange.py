"""The exchange of messages: send all, yield replies as they arrive, stop at a deadline.

Flower's own `send_and_receive` returns all replies at the end, and polls every three seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedapt.federation.flower.tensors import count_bytes

_POLL_S = 0.05


@dataclass(frozen=True)
class Answer:
    """A reply.

    Attributes:
        reply: Flower's message.
        n_bytes: size of the message and its reply.
        seconds: time from the message to its reply.
    """

    reply: Message
    n_bytes: int
    seconds: float


def exchange(
    grid: Grid, messages: Sequence[Message], seconds: float
) -> Iterator[tuple[int, Answer]]:
    """Send messages, and yield (index of the message, answer) as answers arrive.

    Args:
        seconds: maximum time to wait for answers.
    """
    if not messages:
        return
    sizes = [count_bytes(message) for message in messages]
    started = time.monotonic()
    sent = list(grid.push_messages(messages))
    waiting = {message_id: place for place, message_id in enumerate(sent) if message_id}
    while waiting:
        is_over = time.monotonic() - started >= seconds
        for reply in grid.pull_messages(list(waiting)):
            place = waiting.pop(reply.metadata.reply_to_message_id)
            n_bytes = sizes[place] + count_bytes(reply)
            yield place, Answer(reply, n_bytes, time.monotonic() - started)
        if is_over:  # all earlier answers have been yielded
            return
        if waiting:
            time.sleep(_POLL_S)
