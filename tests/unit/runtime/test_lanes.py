"""Batches of any size through lanes of a limited one; the lanes here compute sums."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.lanes import Lanes, split_sizes


class SumLane:
    """Sums each image; refuses what a lane of hardware could not do. Twin: tests/gpu."""

    def __init__(self, log: list[str], name: str, fail_at: int | None = None) -> None:
        self.log, self.name, self.fail_at = log, name, fail_at
        self.sizes: list[int] = []
        self.busy: NDArray[np.uint8] | None = None
        self.holder = threading.Lock()

    def start(self, images: NDArray[np.uint8]) -> None:
        assert self.holder.acquire(blocking=False), "two callers hold one lane"
        self.log.append(f"start {self.name}")
        self.sizes.append(len(images))
        if self.fail_at == len(self.sizes):
            self.holder.release()
            raise RuntimeError("the lane failed")
        self.busy = images.copy()

    def finish(self) -> Outputs:
        self.log.append(f"finish {self.name}")
        images, self.busy = self.busy, None
        assert images is not None, "finished without a start"
        sums = images.reshape(len(images), -1).sum(1, dtype=np.float32)[:, None]
        self.holder.release()
        return Outputs(sums, 2 * sums, 3 * sums)


def make(
    n_lanes: int, least: int, most: int, **options: int
) -> tuple[Lanes, list[SumLane], list[str]]:
    log: list[str] = []
    lanes = [SumLane(log, "ab"[i], **options) for i in range(n_lanes)]
    return Lanes(lanes, least, most), lanes, log


def draw(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("n", "least", "most", "expected"),
    [
        (1, 1, 4, [(0, 1, 1)]),
        (4, 1, 4, [(0, 4, 4)]),
        (5, 1, 4, [(0, 4, 4), (4, 5, 1)]),
        (9, 3, 4, [(0, 4, 4), (4, 8, 4), (8, 9, 3)]),
        (2, 8, 8, [(0, 2, 8)]),
    ],
)
def test_batches_are_cut(
    n: int, least: int, most: int, expected: list[tuple[int, int, int]]
) -> None:
    assert [(p.start, p.stop, size) for p, size in split_sizes(n, least, most)] == expected


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 17])
@pytest.mark.parametrize(("least", "most"), [(1, 4), (3, 4), (4, 4), (1, 32)])
@pytest.mark.parametrize("n_lanes", [1, 2])
def test_the_rows_are_those_of_the_images_in_order(
    n: int, least: int, most: int, n_lanes: int
) -> None:
    lanes, made, _ = make(n_lanes, least, most)
    images = draw(n)
    found = lanes.run(images)
    sums = images.reshape(n, -1).astype(np.float32).sum(1)[:, None]
    for factor, output in zip((1, 2, 3), found, strict=True):
        np.testing.assert_array_equal(output, factor * sums)
    assert all(least <= size <= most for lane in made for size in lane.sizes)


def test_the_second_lane_starts_before_the_first_is_done() -> None:
    lanes, _, log = make(2, 1, 4)
    lanes.run(draw(12))
    assert log[:3] == ["start a", "start b", "finish a"]
    assert log[3:] == ["start a", "finish b", "finish a"]


def test_an_error_gives_all_lanes_back() -> None:
    lanes, made, _ = make(2, 1, 4, fail_at=2)
    with pytest.raises(RuntimeError, match="the lane failed"):
        lanes.run(draw(20))
    for lane in made:
        lane.fail_at = None
        if lane.holder.locked():
            lane.holder.release()  # what was begun is dropped
    images = draw(20)
    sums = images.reshape(20, -1).astype(np.float32).sum(1)
    np.testing.assert_array_equal(lanes.run(images).logits[:, 0], sums)


def test_many_callers_share_two_lanes() -> None:
    lanes, made, _ = make(2, 2, 4)
    batches = [draw(1 + i % 13, seed=i) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lanes.run, batches, timeout=60))
    for batch, found in zip(batches, rows, strict=True):
        sums = batch.reshape(len(batch), -1).astype(np.float32).sum(1)
        np.testing.assert_array_equal(found.logits[:, 0], sums)
    assert sum(len(lane.sizes) for lane in made) == sum(-(-len(b) // 4) for b in batches)
