"""Batches of any size through a few lanes that each take a limited one, with work in each.

A lane is a set of buffers with a stream of its own. While one computes, the next is filled, so that
copies and computation overlap; several callers share the lanes.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs


class Lane(Protocol):
    """One batch at a time; only its holder calls it."""

    def start(self, images: NDArray[np.uint8]) -> None:
        """Begin with uint8 [batch, height, width, 3] without waiting for the end."""
        ...

    def finish(self) -> Outputs:
        """Wait for what was begun; the arrays are the caller's own."""
        ...


def split_sizes(n_images: int, least: int, most: int) -> Iterator[tuple[slice, int]]:
    """Cut a batch into parts that an engine takes: the images, and the size that it is given.

    The size is larger than the part where that has fewer images than the engine takes.
    """
    for start in range(0, n_images, most):
        part = slice(start, min(start + most, n_images))
        yield part, max(least, part.stop - part.start)


class Lanes:
    """Lanes that callers share. Calls of `run` from several threads are safe.

    Args:
        lanes: at least one; two let copies and computation overlap.
        least, most: the sizes of batch that a lane takes.
    """

    def __init__(self, lanes: Sequence[Lane], least: int, most: int) -> None:
        self._least, self._most = least, most
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in lanes:
            self._free.put(lane)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """uint8 [batch, height, width, 3] -> outputs of all of them, in order."""
        done: list[Outputs] = []
        begun: deque[tuple[Lane, int]] = deque()

        def finish_oldest() -> None:
            lane, n_images = begun.popleft()
            try:
                done.append(Outputs(*(output[:n_images] for output in lane.finish())))
            finally:
                self._free.put(lane)

        try:
            for part, size in split_sizes(len(images), self._least, self._most):
                lane = self._take(wait=not begun)
                while lane is None:
                    # never wait for others while holding lanes that they may be waiting for
                    finish_oldest()
                    lane = self._take(wait=not begun)
                chosen = images[part]
                begun.append((lane, len(chosen)))
                if len(chosen) < size:
                    chosen = np.concatenate([chosen, np.repeat(chosen[-1:], size - len(chosen), 0)])
                lane.start(chosen)
            while begun:
                finish_oldest()
        finally:
            while begun:  # after an error: the others' lanes must come back
                self._free.put(begun.popleft()[0])
        return Outputs(*(np.concatenate(parts) for parts in zip(*done, strict=True)))

    def _take(self, wait: bool) -> Lane | None:
        try:
            return self._free.get(block=wait)
        except queue.Empty:
            return None
