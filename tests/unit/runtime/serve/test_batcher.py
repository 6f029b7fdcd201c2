"""Images that come apart are computed together, none is lost, and failures reach whoever asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.serve.batcher import Batcher, BatchSettings

LONG_S = 3600.0  # a delay that no test waits for


class Graph:
    """Says of an image its number; keeps the sizes of its batches, and waits where told."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.started = threading.Event()

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        self.sizes.append(len(images))
        self.started.set()
        assert self.may_run.wait(60)
        number = images[:, 0, 0, :1].astype(np.float32)
        if (number == 255).any():
            raise RuntimeError("the graph failed")
        return Outputs(number, number + 1, number + 2)


def pixels(number: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), number, np.uint8)


def run(
    graph: Graph,
    work: Callable[[Batcher], Awaitable[None]],
    max_batch: int = 4,
    max_delay_s: float = 0.0,
    in_flight: int = 1,
) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(in_flight) as pool:
            batcher = Batcher(graph, pool, BatchSettings(max_batch, max_delay_s, in_flight))
            await work(batcher)
            await batcher.close()

    asyncio.run(main())


def test_a_full_batch_does_not_wait() -> None:
    graph = Graph()

    async def work(batcher: Batcher) -> None:
        rows = await asyncio.gather(*(batcher.infer(pixels(i)) for i in range(8)))
        assert [row.logits.tolist() for row in rows] == [[float(i)] for i in range(8)]
        assert [row.features.tolist() for row in rows] == [[float(i) + 2] for i in range(8)]

    run(graph, work, max_delay_s=LONG_S)
    assert graph.sizes == [4, 4]


def test_a_batch_takes_its_runs_share_of_the_waiting_images() -> None:
    graph = Graph()

    async def work(batcher: Batcher) -> None:
        graph.may_run.clear()
        asked = [asyncio.create_task(batcher.infer(pixels(i))) for i in range(9)]
        while len(graph.sizes) < 2:  # of 9 waiting images, and of the 4 behind the first 5
            await asyncio.sleep(0.001)
        graph.may_run.set()
        rows = await asyncio.gather(*asked)
        assert [row.logits.tolist() for row in rows] == [[float(i)] for i in range(9)]

    run(graph, work, max_batch=8, max_delay_s=0.0, in_flight=2)
    assert sorted(graph.sizes) == [1, 1, 2, 5]


def test_a_lone_image_waits_no_longer_than_the_delay() -> None:
    graph = Graph()

    async def work(batcher: Batcher) -> None:
        assert (await batcher.infer(pixels(7))).logits.tolist() == [7.0]

    run(graph, work, max_delay_s=0.001)
    assert graph.sizes == [1]


def test_images_gather_while_the_cores_are_taken() -> None:
    graph = Graph()
    graph.may_run.clear()

    async def work(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.infer(pixels(0)))
        await asyncio.to_thread(graph.started.wait)
        others = [asyncio.create_task(batcher.infer(pixels(i))) for i in range(1, 4)]
        await asyncio.sleep(0)  # each puts its image in
        graph.may_run.set()
        await asyncio.gather(first, *others)

    run(graph, work)
    assert graph.sizes == [1, 3]


def test_a_caller_that_leaves_takes_its_image_back() -> None:
    graph = Graph()
    graph.may_run.clear()

    async def work(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.infer(pixels(0)))
        await asyncio.to_thread(graph.started.wait)
        gone, stays = (asyncio.create_task(batcher.infer(pixels(i))) for i in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        graph.may_run.set()
        assert (await stays).logits.tolist() == [2.0]
        await first

    run(graph, work)
    assert graph.sizes == [1, 1]


def test_a_failure_is_told_to_the_whole_batch_and_the_next_one_runs() -> None:
    graph = Graph()

    async def work(batcher: Batcher) -> None:
        failed = await asyncio.gather(
            *(batcher.infer(pixels(i)) for i in (1, 255)), return_exceptions=True
        )
        assert [str(error) for error in failed] == ["the graph failed"] * 2
        assert (await batcher.infer(pixels(3))).logits.tolist() == [3.0]

    run(graph, work, max_batch=2, max_delay_s=0.001)


def test_closing_answers_what_is_there() -> None:
    graph = Graph()
    graph.may_run.clear()

    async def work(batcher: Batcher) -> None:
        waiting = [asyncio.create_task(batcher.infer(pixels(i))) for i in range(9)]
        await asyncio.to_thread(graph.started.wait)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        assert not closing.done()
        graph.may_run.set()
        await closing
        assert [task.result().logits.tolist() for task in waiting] == [[float(i)] for i in range(9)]

    run(graph, work)


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_batches_run_at_once_than_there_are_cores(in_flight: int) -> None:
    running = most = 0
    lock = threading.Lock()
    all_in = threading.Barrier(in_flight)

    class Counting(Graph):
        def __call__(self, images: NDArray[np.uint8]) -> Outputs:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            all_in.wait(60)  # as many as there are cores do meet
            with lock:
                running -= 1
            return super().__call__(images)

    async def work(batcher: Batcher) -> None:
        await asyncio.gather(*(batcher.infer(pixels(i)) for i in range(6)))

    run(Counting(), work, max_batch=1, in_flight=in_flight)
    assert most == in_flight
