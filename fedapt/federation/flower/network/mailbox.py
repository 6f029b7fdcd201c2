"""Messages for nodes and their replies, in the server's memory.

The event loop takes messages and stores replies for the nodes. The training thread stores messages
and takes replies. A message stays until it is answered, withdrawn or expired. A node that lost the
message, or was restarted, gets it again. This is safe, because training from the same start gives
the same bytes.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# maximum of replaced processes that are remembered for each node
_REPLACED = 100
# a node without a sign of life for this time counts as disconnected
AWAY_S = 30.0


class NotJoined(Exception):
    """The process has not joined, or the server was restarted since."""


class Displaced(Exception):
    """Another process has joined with the same key since."""


@dataclass(frozen=True)
class Letter:
    """A message to a node.

    Attributes:
        kind, group: the message's type, and the round as text.
        run: number of the training that sent it.
        body: `content.encode` of its records.
        expires: on the clock of `time.monotonic`.
    """

    id: str
    kind: str
    group: str
    run: int
    body: bytes
    expires: float


@dataclass
class _Box:
    node_id: int
    instance: str = ""
    replaced: dict[str, None] = field(default_factory=dict)  # the oldest first
    seen: float = -AWAY_S
    letters: dict[str, Letter] = field(default_factory=dict)
    wake: asyncio.Event | None = None


class Mailbox:
    """The messages of all nodes, by the names of their keys. All methods are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._boxes: dict[str, _Box] = {}
        self._names: dict[int, str] = {}
        self._replies: dict[str, bytes] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.largest = 0  # bytes of the largest message of this training

    # methods for nodes, in the event loop

    def join(self, name: str, instance: str) -> None:
        """Register a node's process; it replaces an earlier one."""
        with self._lock:
            if name not in self._boxes:
                number = len(self._boxes) + 1
                self._boxes[name], self._names[number] = _Box(number), name
            box = self._boxes[name]
            if instance in box.replaced:
                raise Displaced
            if box.instance not in ("", instance):
                box.replaced[box.instance] = None
                if len(box.replaced) > _REPLACED:
                    del box.replaced[next(iter(box.replaced))]
                self._wake(box)
            box.instance, box.seen = instance, time.monotonic()

    def touch(self, name: str, instance: str) -> None:
        """Record a sign of life from a node's process.

        Raises:
            NotJoined, Displaced: another process has joined, or none.
        """
        with self._lock:
            self._find(name, instance).seen = time.monotonic()

    def leave(self, name: str, instance: str) -> None:
        """Record that a node's process disconnected while it waited for a message."""
        with self._lock:
            box = self._boxes.get(name)
            if box is not None and box.instance == instance:
                box.seen = -AWAY_S

    async def take(self, name: str, instance: str, seconds: float) -> Letter | None:
        """The oldest unanswered message; None if none arrives in that time.

        Raises:
            NotJoined, Displaced: the process is not the one that has joined.
        """
        self._loop = asyncio.get_running_loop()
        end = time.monotonic() + seconds
        while True:
            with self._lock:
                box = self._find(name, instance)
                box.seen = now = time.monotonic()
                for letter in list(box.letters.values()):
                    if letter.expires > now:
                        return letter
                    del box.letters[letter.id]
                box.wake = wake = asyncio.Event()
            # wake up at times to check whether the node is still connected
            if (remaining := min(end - now, AWAY_S / 3)) <= 0:
                return None
            try:
                await asyncio.wait_for(wake.wait(), remaining)
            except TimeoutError:
                continue

    def answer(self, name: str, instance: str, letter_id: str, body: bytes) -> bool:
        """Store a node's reply; False if nothing waits for it.

        Raises:
            NotJoined, Displaced: the process is not the one that has joined.
        """
        with self._lock:
            box = self._find(name, instance)
            box.seen = time.monotonic()
            letter = box.letters.pop(letter_id, None)
            if letter is None or letter.expires < box.seen:
                return False
            self._replies[letter_id] = body
            return True

    # methods for the training thread

    def online(self) -> dict[int, str]:
        """Numbers and names of the connected nodes."""
        with self._lock:
            limit = time.monotonic() - AWAY_S
            return {box.node_id: name for name, box in self._boxes.items() if box.seen > limit}

    def put(self, node_id: int, kind: str, group: str, run: int, ttl: float, body: bytes) -> str:
        """Store a message for a node, and return its number."""
        letter = Letter(secrets.token_hex(16), kind, group, run, body, time.monotonic() + ttl)
        with self._lock:
            box = self._boxes[self._names[node_id]]
            for old in [x for x in box.letters.values() if x.expires <= time.monotonic()]:
                del box.letters[old.id]
            box.letters[letter.id] = letter
            self.largest = max(self.largest, len(body))
            self._wake(box)
        return letter.id

    def collect(self, ids: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The replies to these messages that have arrived; each is returned once."""
        for letter_id in ids:
            with self._lock:
                body = self._replies.pop(letter_id, None)
            if body is not None:
                yield letter_id, body

    def clear(self) -> None:
        """Withdraw all messages."""
        with self._lock:
            self._replies.clear()
            self.largest = 0
            for box in self._boxes.values():
                box.letters.clear()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Withdraw all messages at the end of the block."""
        try:
            yield
        finally:
            self.clear()

    def _find(self, name: str, instance: str) -> _Box:
        box = self._boxes.get(name)
        if box is not None and instance in box.replaced:
            raise Displaced
        if box is None or box.instance != instance:
            raise NotJoined
        return box

    def _wake(self, box: _Box) -> None:
        if box.wake is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(box.wake.set)
