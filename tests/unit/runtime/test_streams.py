"""Batches of any size through streams of a limited one; the streams here compute sums."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.streams import StreamPool, split_sizes


class SumStream:
    """Sums each image; refuses what a stream of hardware could not do. Twin: tests/gpu."""

    def __init__(self, log: list[str], name: str, fail_at: int | None = None) -> None:
        self.log, self.name, self.fail_at = log, name, fail_at
        self.sizes: list[int] = []
        self.busy: NDArray[np.uint8] | None = None
        self.holder = threading.Lock()

    def start(self, images: NDArray[np.uint8]) -> None:
        assert self.holder.acquire(blocking=False), "two callers hold one stream"
        self.log.append(f"start {self.name}")
        self.sizes.append(len(images))
        if self.fail_at == len(self.sizes):
            self.holder.release()
            raise RuntimeError("the stream failed")
        self.busy = images.copy()

    def finish(self) -> Outputs:
        self.log.append(f"finish {self.name}")
        images, self.busy = self.busy, None
        assert images is not None, "finished without a start"
        sums = images.reshape(len(images), -1).sum(1, dtype=np.float32)[:, None]
        self.holder.release()
        return Outputs(sums, 2 * sums, 3 * sums)


def make(
    n_streams: int, minimum: int, maximum: int, **options: int
) -> tuple[StreamPool, list[SumStream], list[str]]:
    log: list[str] = []
    streams = [SumStream(log, "ab"[i], **options) for i in range(n_streams)]
    return StreamPool(streams, minimum, maximum), streams, log


def draw(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("n", "minimum", "maximum", "expected"),
    [
        (1, 1, 4, [(0, 1, 1)]),
        (4, 1, 4, [(0, 4, 4)]),
        (5, 1, 4, [(0, 4, 4), (4, 5, 1)]),
        (9, 3, 4, [(0, 4, 4), (4, 8, 4), (8, 9, 3)]),
        (2, 8, 8, [(0, 2, 8)]),
    ],
)
def test_batches_are_cut(
    n: int, minimum: int, maximum: int, expected: list[tuple[int, int, int]]
) -> None:
    assert [(p.start, p.stop, size) for p, size in split_sizes(n, minimum, maximum)] == expected


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 17])
@pytest.mark.parametrize(("minimum", "maximum"), [(1, 4), (3, 4), (4, 4), (1, 32)])
@pytest.mark.parametrize("n_streams", [1, 2])
def test_the_rows_are_those_of_the_images_in_order(
    n: int, minimum: int, maximum: int, n_streams: int
) -> None:
    streams, made, _ = make(n_streams, minimum, maximum)
    images = draw(n)
    found = streams.run(images)
    sums = images.reshape(n, -1).astype(np.float32).sum(1)[:, None]
    for factor, output in zip((1, 2, 3), found, strict=True):
        np.testing.assert_array_equal(output, factor * sums)
    assert all(minimum <= size <= maximum for stream in made for size in stream.sizes)


class MeetingStream(SumStream):
    """Finishes only after another stream has started too."""

    started = threading.Barrier(2)

    def finish(self) -> Outputs:
        self.started.wait(timeout=30)
        return super().finish()


def test_the_second_stream_starts_before_the_first_is_done() -> None:
    streams = [MeetingStream([], name) for name in "ab"]
    images = draw(16)
    found = StreamPool(streams, 1, 4).run(images)
    sums = images.reshape(16, -1).astype(np.float32).sum(1)
    np.testing.assert_array_equal(found.logits[:, 0], sums)
    assert [stream.sizes for stream in streams] == [[4, 4], [4, 4]]


def test_a_batch_of_one_part_stays_in_the_thread_of_its_caller() -> None:
    streams, made, _ = make(1, 1, 4)
    callers = []
    made[0].start = lambda images: callers.append(threading.get_ident())  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="finished without a start"):
        streams.run(draw(4))
    assert callers == [threading.get_ident()]


def test_an_error_gives_all_streams_back() -> None:
    streams, made, _ = make(2, 1, 4, fail_at=2)
    with pytest.raises(RuntimeError, match="the stream failed"):
        streams.run(draw(20))
    for stream in made:
        stream.fail_at = None
        if stream.holder.locked():
            stream.holder.release()  # what was begun is dropped
    images = draw(20)
    sums = images.reshape(20, -1).astype(np.float32).sum(1)
    np.testing.assert_array_equal(streams.run(images).logits[:, 0], sums)


def test_many_callers_share_two_streams() -> None:
    streams, made, _ = make(2, 2, 4)
    batches = [draw(1 + i % 13, seed=i) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(streams.run, batches, timeout=60))
    for batch, found in zip(batches, rows, strict=True):
        sums = batch.reshape(len(batch), -1).astype(np.float32).sum(1)
        np.testing.assert_array_equal(found.logits[:, 0], sums)
    assert sum(len(stream.sizes) for stream in made) == sum(-(-len(b) // 4) for b in batches)
