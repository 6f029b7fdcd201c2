"""The server's limits, for each client and for all clients together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedapt_runtime.errors import RequestError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_body: bytes of a request's body.
        max_bodies: bytes of all bodies that are held at once.
        max_images: images of a request.
        max_pixels: maximum number of pixels of an image before it is resized.
        max_queue: images that are accepted and not yet answered.
        max_connections: connections at once; more are closed as they come.
        header_s: seconds until a connection has sent the head of its next request.
        body_s: seconds until a request's body is there.
        answer_s: seconds from a whole body to its answer.
        drain_s: seconds that running requests get when the server ends.
    """

    max_body: int = 32 * MIB
    max_bodies: int = 256 * MIB
    max_images: int = 64
    max_pixels: int = 50_000_000
    max_queue: int = 512
    max_connections: int = 4096
    header_s: float = 10.0
    body_s: float = 60.0
    answer_s: float = 60.0
    drain_s: float = 30.0


class Quota:
    """A maximum number of items that are held at once.

    Args:
        most: how many.
        what: name of the items, for messages.
    """

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what = most, what
        self.held = 0

    def take(self, n: int) -> None:
        """Hold n more items.

        Raises:
            RequestError: 503, as all are taken.
        """
        if self.held + n > self._most:
            raise RequestError(
                503,
                retry_after_s=1,
                where="the server",
                found=f"{self.held} of {self._most} {self._what} in use, and {n} requested",
                expected="enough free capacity for the request",
                next_step="send the request again later",
            )
        self.held += n

    def give_back(self, n: int) -> None:
        """Release n items."""
        self.held -= n

    @contextmanager
    def hold(self, n: int) -> Iterator[None]:
        """Hold n items while the block runs."""
        self.take(n)
        try:
            yield
        finally:
            self.give_back(n)
