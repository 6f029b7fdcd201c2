"""Dynamic batching: one run of the graph computes images of different requests.

A batch starts when a run is free and either the batch is full or its first image has waited for the
delay. While all runs are in use, images gather without it; the delay matters at low load. A batch
takes its run's share of the waiting images: a larger one would keep the others' next run idle while
all its images wait for its end.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs

Run = Callable[[NDArray[np.uint8]], Outputs]


@dataclass(frozen=True)
class BatchSettings:
    """Settings of the dynamic batching.

    Attributes:
        max_batch: maximum number of images in a batch.
        max_delay_s: maximum time, in seconds, that the first image of a batch waits for others.
        in_flight: maximum number of batches that run at the same time.
    """

    max_batch: int
    max_delay_s: float
    in_flight: int


@dataclass(frozen=True)
class _Waiting:
    pixels: NDArray[np.uint8]
    answer: asyncio.Future[Outputs]
    since_s: float


class Batcher:
    """Collects images for one graph. It belongs to the event loop that creates it.

    Args:
        run: uint8 [batch, height, width, 3] -> the graph's outputs; called in `executor`.
        executor: threads for `run`, at least `settings.in_flight`.
        settings: sizes and delay.
        observe: called after each batch with its number of images and its seconds.
    """

    def __init__(
        self,
        run: Run,
        executor: Executor,
        settings: BatchSettings,
        observe: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self._run, self._executor, self._settings = run, executor, settings
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._free_runs = asyncio.Semaphore(settings.in_flight)
        self._running: set[asyncio.Task[None]] = set()
        self._dispatcher = asyncio.create_task(self._dispatch())

    async def infer(self, pixels: NDArray[np.uint8]) -> Outputs:
        """The graph's outputs for one image, without the batch axis.

        If the caller is cancelled before its batch starts, its image leaves the queue.

        Args:
            pixels: uint8 [height, width, 3].

        Raises:
            Exception: the error of `run`, the same for each image of the batch.
        """
        item = _Waiting(pixels, self._loop.create_future(), self._loop.time())
        self._waiting.append(item)
        self._arrived.set()
        if len(self._waiting) >= self._settings.max_batch:
            self._full.set()
        return await item.answer

    async def close(self) -> None:
        """Complete the accepted images; the caller must send no more."""
        while self._waiting or self._running:
            await asyncio.sleep(0.005)
        self._dispatcher.cancel()
        await asyncio.gather(self._dispatcher, return_exceptions=True)

    async def _dispatch(self) -> None:
        while True:
            await self._free_runs.acquire()
            batch: list[_Waiting] = []
            while not batch:
                await self._gather()
                batch = self._take()
            task = asyncio.create_task(self._compute(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _gather(self) -> None:
        """Wait for a first image, and then for a full batch or the end of the delay."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        left = self._waiting[0].since_s + self._settings.max_delay_s - self._loop.time()
        if left > 0 and len(self._waiting) < self._settings.max_batch:
            self._full.clear()
            try:
                async with asyncio.timeout(left):
                    await self._full.wait()
            except TimeoutError:
                pass

    def _take(self) -> list[_Waiting]:
        share = math.ceil(len(self._waiting) / self._settings.in_flight)
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < min(share, self._settings.max_batch):
            item = self._waiting.popleft()
            if not item.answer.done():  # the client may have disconnected
                batch.append(item)
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        started = self._loop.time()
        try:
            outputs = await self._loop.run_in_executor(
                self._executor, lambda: self._run(np.stack([item.pixels for item in batch]))
            )
        except Exception as error:  # every request of the batch gets it
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(error)
            return
        finally:
            self._free_runs.release()
            self._observe(len(batch), self._loop.time() - started)
        for i, item in enumerate(batch):
            if not item.answer.done():
                item.answer.set_result(Outputs(*(output[i] for output in outputs)))
