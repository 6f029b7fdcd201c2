"""Threads that decode and classify in turns, no more of them than cores.

Threads of their own for decoding would compete with inference for the cores, and each interruption
leaves a batch with cold caches. Two threads that decode at the same time also wait for Python's
lock. A free thread therefore decodes the next task only if no other thread does, or if it has
nothing else to do; it classifies a decoded task otherwise. Threads that wait for files or the
network leave cores idle, so twice as many run while decoding does (docs/cpu.md has the rates).
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Task = TypeVar("Task")
Decoded = TypeVar("Decoded")
Result = TypeVar("Result")

_WAITS = 0.5  # share of decoding's time in which its thread computes; below it, decoding waits


class TurnPool(Generic[Task, Decoded, Result]):
    """A pool whose tasks have two stages: decode, then classify."""

    def __init__(
        self,
        threads: int,
        decode: Callable[[Task], Decoded],
        classify: Callable[[Decoded], Result],
    ) -> None:
        """Start a pool.

        Args:
            threads: number of threads that work at the same time, and maximum number of threads
                that classify.
            decode, classify: the stages.
        """
        self._threads = self._limit = threads
        self._decode, self._classify = decode, classify
        self._pool = ThreadPoolExecutor(2 * threads, thread_name_prefix="fedapt-turn")
        self._lock = threading.Lock()
        self._tasks: deque[tuple[Future[Result], Task]] = deque()
        self._decoded: deque[tuple[Future[Result], Decoded]] = deque()
        self._n_decoding = self._n_classifying = 0
        self._postponed = 0  # stages for which there was no work or no core

    def submit(self, task: Task) -> Future[Result]:
        """The future result of a task; it has the exception of a stage that failed."""
        future: Future[Result] = Future()
        with self._lock:
            self._tasks.append((future, task))
        for _stage in range(2):
            self._pool.submit(self._work)
        return future

    def shutdown(self) -> None:
        """Cancel what has not begun, and wait for what has."""
        with self._lock:
            self._tasks.clear()
            self._decoded.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _work(self) -> None:
        """Run one stage of any task, then those that were postponed meanwhile."""
        while stage := self._choose():
            stage()
            with self._lock:
                free = self._limit - self._n_decoding - self._n_classifying
                n_stages = max(0, min(free, self._postponed))
                self._postponed -= n_stages
            if not n_stages:
                return
            for _other_thread in range(n_stages - 1):
                self._pool.submit(self._work)

    def _choose(self) -> Callable[[], None] | None:
        with self._lock:
            if self._n_decoding + self._n_classifying < self._limit:
                others_decode = self._n_decoding or not self._tasks
                is_stocked = others_decode or len(self._decoded) >= self._threads
                if self._decoded and is_stocked and self._n_classifying < self._threads:
                    self._n_classifying += 1
                    return functools.partial(self._classify_one, *self._decoded.popleft())
                if self._tasks:
                    self._n_decoding += 1
                    return functools.partial(self._decode_one, *self._tasks.popleft())
            self._postponed += 1
            return None

    def _decode_one(self, future: Future[Result], task: Task) -> None:
        wall, computed = time.perf_counter(), time.thread_time()
        decoded = []
        try:
            decoded.append((future, self._decode(task)))
        except BaseException as error:
            future.set_exception(error)
        wall, computed = time.perf_counter() - wall, time.thread_time() - computed
        with self._lock:
            self._n_decoding -= 1
            self._decoded.extend(decoded)
            self._limit = self._threads * (2 if computed < _WAITS * wall else 1)

    def _classify_one(self, future: Future[Result], decoded: Decoded) -> None:
        try:
            future.set_result(self._classify(decoded))
        except BaseException as error:
            future.set_exception(error)
        finally:
            with self._lock:
                self._n_classifying -= 1
