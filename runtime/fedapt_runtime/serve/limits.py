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
        max_body: maximum size of a request's body, in bytes.
        max_bodies: maximum size of all bodies that are held at the same time, in bytes.
        max_images: maximum number of images in a request.
        max_pixels: maximum number of pixels of an image before it is resized.
        max_queue: maximum number of images that are accepted and not yet answered.
        max_connections: maximum number of open connections; further ones are closed at once.
        header_s: seconds until the head of a connection's next request is complete.
        body_s: seconds until a request's body is complete.
        answer_s: seconds from the complete body to the response.
        drain_s: seconds for running requests after the server has been told to stop.
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
        maximum: number of items.
        items: name of the items, for messages.

    Attributes:
        held: number of items that are held now.
    """

    def __init__(self, maximum: int, items: str) -> None:
        self._maximum, self._items = maximum, items
        self.held = 0

    def take(self, n: int) -> None:
        """Hold n more items.

        Raises:
            RequestError: 503, fewer than n items are free.
        """
        if self.held + n > self._maximum:
            raise RequestError(
                503,
                retry_after_s=1,
                where="the server",
                found=f"{self.held} of {self._maximum} {self._items} in use, and {n} requested",
                expected="enough free capacity for the request",
                next_step="send the request again later",
            )
        self.held += n

    def give_back(self, n: int) -> None:
        """Release n items."""
        self.held -= n

    @contextmanager
    def hold(self, n: int) -> Iterator[None]:
        """Hold n items while the block runs.

        Raises:
            RequestError: see `take`.
        """
        self.take(n)
        try:
            yield
        finally:
            self.give_back(n)
