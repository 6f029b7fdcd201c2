"""Threads that decode and classify in turns: how many at a time, which stage, and failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from fedapt_runtime import turns
from fedapt_runtime.turns import TurnPool


class Counter:
    """Counts the threads inside each stage, and the most of them at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = {"decode": 0, "classify": 0}
        self.most = {"decode": 0, "classify": 0, "both": 0}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with self._lock:
            self.inside[name] += 1
            self.most[name] = max(self.most[name], self.inside[name])
            self.most["both"] = max(self.most["both"], sum(self.inside.values()))
        yield
        with self._lock:
            self.inside[name] -= 1


@pytest.fixture
def computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding seems to compute all the time, whatever else the machine does."""
    clock = SimpleNamespace(perf_counter=time.perf_counter, thread_time=time.perf_counter)
    monkeypatch.setattr(turns, "time", clock)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding seems to wait all the time."""
    clock = SimpleNamespace(perf_counter=time.perf_counter, thread_time=lambda: 0.0)
    monkeypatch.setattr(turns, "time", clock)


def run(
    threads: int, n_tasks: int, decode: Callable[[], None], classify: Callable[[], None]
) -> Counter:
    counter = Counter()

    def decode_task(task: int) -> int:
        with counter.stage("decode"):
            decode()
        return task + 1

    def classify_task(decoded: int) -> int:
        with counter.stage("classify"):
            classify()
        return 10 * decoded

    pool = TurnPool(threads, decode_task, classify_task)
    futures = [pool.submit(i) for i in range(n_tasks)]
    assert [future.result(60) for future in futures] == [10 * (i + 1) for i in range(n_tasks)]
    pool.shutdown()
    return counter


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_no_more_threads_work_than_there_are_cores(computing: None, threads: int) -> None:
    most = run(threads, 40, lambda: time.sleep(0.001), lambda: time.sleep(0.002)).most
    assert most["both"] == threads


def test_threads_that_wait_for_files_leave_their_core_to_others(waiting: None) -> None:
    most = run(2, 40, lambda: time.sleep(0.005), lambda: time.sleep(0.005)).most
    assert most["both"] > 2
    assert most["classify"] == 2  # as many as the backend takes at a time


def test_one_decodes_while_others_have_batches_to_classify(computing: None) -> None:
    both = []
    counter = Counter()

    def decode(task: int) -> int:
        with counter.stage("decode"):
            time.sleep(0.002)
            # another decodes although a decoded task waits
            both.append(counter.inside["decode"] == 2 and bool(pool._decoded))
        return task

    def classify(decoded: int) -> int:
        with counter.stage("classify"):
            time.sleep(0.02)
        return decoded

    pool = TurnPool(2, decode, classify)
    futures = [pool.submit(i) for i in range(30)]
    assert [future.result(60) for future in futures] == list(range(30))
    pool.shutdown()
    assert len(both) == 30
    assert not any(both)


@pytest.mark.parametrize("stage", ["decode", "classify"])
def test_a_stage_that_fails_fails_its_task_alone(stage: str) -> None:
    def fail_for_3(value: int) -> int:
        if value == 3:
            raise ValueError("three")
        return value

    stages = {"decode": lambda value: value, "classify": lambda value: value, stage: fail_for_3}
    pool = TurnPool(2, stages["decode"], stages["classify"])
    futures = [pool.submit(i) for i in range(8)]
    with pytest.raises(ValueError, match="three"):
        futures[3].result(60)
    assert [future.result(60) for i, future in enumerate(futures) if i != 3] == [
        0,
        1,
        2,
        4,
        5,
        6,
        7,
    ]
    pool.shutdown()


def test_shutdown_cancels_what_has_not_begun() -> None:
    started = threading.Event()
    done = []

    def decode(task: int) -> int:
        started.set()
        time.sleep(0.05)
        done.append(task)
        return task

    pool = TurnPool(1, decode, lambda task: task)
    for i in range(50):
        pool.submit(i)
    assert started.wait(60)
    pool.shutdown()
    assert len(done) < 5
    assert not any(t.name.startswith("fedapt-turn") for t in threading.enumerate())
