"""Dynamic batching: images of different requests are computed in one run of the graph.

A batch starts when a core is free for it and it is full, or its first image has waited long enough.
While all cores compute, images gather by themselves; the delay matters where they are idle.
"""

from __future__ import annotations

import asyncio
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
        max_batch: images of a batch.
        max_delay_s: how long the first image of a batch waits for others.
        in_flight: batches that are computed at once.
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
        run: uint8 [batch, height, width, 3] -> what the graph says; called in `executor`.
        observe: is told the images and seconds of each batch.
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
        self._came = asyncio.Event()
        self._full = asyncio.Event()
        self._cores = asyncio.Semaphore(settings.in_flight)
        self._running: set[asyncio.Task[None]] = set()
        self._dispatcher = asyncio.create_task(self._dispatch())

    async def infer(self, pixels: NDArray[np.uint8]) -> Outputs:
        """The graph's outputs for one image, uint8 [height, width, 3], without the batch axis.

        If the caller is cancelled before its batch starts, its image leaves the queue.
        """
        item = _Waiting(pixels, self._loop.create_future(), self._loop.time())
        self._waiting.append(item)
        self._came.set()
        if len(self._waiting) >= self._settings.max_batch:
            self._full.set()
        return await item.answer

    async def close(self) -> None:
        """Complete the accepted images; accepts no more."""
        while self._waiting or self._running:
            await asyncio.sleep(0.005)
        self._dispatcher.cancel()
        await asyncio.gather(self._dispatcher, return_exceptions=True)

    async def _dispatch(self) -> None:
        while True:
            await self._cores.acquire()
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
            self._came.clear()
            await self._came.wait()
        left = self._waiting[0].since_s + self._settings.max_delay_s - self._loop.time()
        if left > 0 and len(self._waiting) < self._settings.max_batch:
            self._full.clear()
            try:
                async with asyncio.timeout(left):
                    await self._full.wait()
            except TimeoutError:
                pass

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._settings.max_batch:
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
        except Exception as error:  # every request of the batch is told
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(error)
            return
        finally:
            self._cores.release()
            self._observe(len(batch), self._loop.time() - started)
        for i, item in enumerate(batch):
            if not item.answer.done():
                item.answer.set_result(Outputs(*(output[i] for output in outputs)))
