"""Batches of any size, divided over a few streams with a maximum size each.

A batch stream is a CUDA stream with its own buffers. While one stream computes, the next is filled,
so copies and computation overlap. Several callers share the streams.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs


class BatchStream(Protocol):
    """Runs one batch at a time, for one caller at a time."""

    def start(self, images: NDArray[np.uint8]) -> None:
        """Start a batch, uint8 [batch, height, width, 3], without waiting for its end."""
        ...

    def finish(self) -> Outputs:
        """Wait for the started batch and return its outputs, which the caller owns."""
        ...


def split_sizes(n_images: int, minimum: int, maximum: int) -> Iterator[tuple[slice, int]]:
    """Cut a batch into parts that a TensorRT engine accepts.

    Args:
        n_images: size of the batch.
        minimum, maximum: batch sizes of the engine.

    Yields:
        The images of a part, and the batch size to run, which is at least `minimum`.
    """
    for start in range(0, n_images, maximum):
        part = slice(start, min(start + maximum, n_images))
        yield part, max(minimum, part.stop - part.start)


class StreamPool:
    """Streams that callers share. Calls of `run` from several threads are safe.

    Args:
        streams: one or more; two let copies and computation overlap.
        minimum, maximum: minimum and maximum batch size of a stream.
    """

    def __init__(self, streams: Sequence[BatchStream], minimum: int, maximum: int) -> None:
        self._minimum, self._maximum = minimum, maximum
        self._free: queue.SimpleQueue[BatchStream] = queue.SimpleQueue()
        for stream in streams:
            self._free.put(stream)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Outputs of all images, in order.

        Args:
            images: uint8 [batch, height, width, 3], at least one; any size of batch.
        """
        done: list[Outputs] = []
        begun: deque[tuple[BatchStream, int]] = deque()

        def finish_oldest() -> None:
            stream, n_images = begun.popleft()
            try:
                done.append(Outputs(*(output[:n_images] for output in stream.finish())))
            finally:
                self._free.put(stream)

        try:
            for part, size in split_sizes(len(images), self._minimum, self._maximum):
                stream = self._take(wait=not begun)
                while stream is None:
                    # no waiting while it holds streams, because other callers may wait for those
                    finish_oldest()
                    stream = self._take(wait=not begun)
                chosen = images[part]
                begun.append((stream, len(chosen)))
                if len(chosen) < size:
                    chosen = np.concatenate([chosen, np.repeat(chosen[-1:], size - len(chosen), 0)])
                stream.start(chosen)
            while begun:
                finish_oldest()
        finally:
            while begun:  # after an error, the remaining streams become free too
                self._free.put(begun.popleft()[0])
        return Outputs(*(np.concatenate(parts) for parts in zip(*done, strict=True)))

    def _take(self, wait: bool) -> BatchStream | None:
        try:
            return self._free.get(block=wait)
        except queue.Empty:
            return None
