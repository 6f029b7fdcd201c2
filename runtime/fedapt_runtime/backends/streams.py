"""Batches of any size, divided over a few streams with a maximum size each.

A batch stream is a CUDA stream with its own buffers. While one stream computes, the next is filled,
so copies and computation overlap. Several callers share the streams.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
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
        # the copy of a part into its stream's buffer takes as long as the computation of another
        self._threads = ThreadPoolExecutor(len(streams), thread_name_prefix="fedapt-stream")

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Outputs of all images, in order.

        Args:
            images: uint8 [batch, height, width, 3], at least one; any size of batch.
        """
        parts = split_sizes(len(images), self._minimum, self._maximum)
        work = [(images[part], size) for part, size in parts]
        if len(work) == 1:
            return self._run_part(*work[0])
        running = [self._threads.submit(self._run_part, *part) for part in work]
        wait(running)  # after an error too: nothing of this call runs on
        done = [part.result() for part in running]
        return Outputs(*(np.concatenate(rows) for rows in zip(*done, strict=True)))

    def _run_part(self, images: NDArray[np.uint8], size: int) -> Outputs:
        """Outputs of at most `maximum` images, computed as a batch of `size`."""
        n_images = len(images)
        if n_images < size:
            images = np.concatenate([images, np.repeat(images[-1:], size - n_images, 0)])
        stream = self._free.get()  # a caller holds one at most, so none waits for itself
        try:
            stream.start(images)
            return Outputs(*(output[:n_images] for output in stream.finish()))
        finally:
            self._free.put(stream)
