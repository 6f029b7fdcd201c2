"""The local engine: every client in this process, as many at a time as there are cores.

A client's steps are many small operations, which one core runs about as fast as two and, where
another process wants the same cores, far faster. So clients run side by side, each on its own
share of the cores; what a client computes does not depend on which others run beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fedapt.core.seeds import child_seed
from fedapt.data.domains import Labelled
from fedapt.train.client import ClientTask, ClientUpdate, Learned, draw_batches, train_client


@dataclass(frozen=True)
class LocalClient:
    """One client: its task and its images."""

    task: ClientTask
    data: Labelled


class LocalEngine:
    """Runs every client in every round. See `train.loop.Engine`."""

    def __init__(self, clients: Sequence[LocalClient], seed: int) -> None:
        self._clients = clients
        self._seed = seed
        cores = os.cpu_count() or 1
        on_gpu = any(client.data.labels.is_cuda for client in clients)
        self._at_once = 1 if on_gpu else min(cores, len(clients))
        self._threads_each = max(1, cores // self._at_once)

    def train_round(self, start: Learned, round_number: int) -> list[ClientUpdate]:
        """Train all clients from `start`; the same round draws the same batches in any process."""

        def train(index: int) -> ClientUpdate:
            client = self._clients[index]
            seed = child_seed(self._seed, "batches", round_number, index)
            return train_client(
                client.task, start, draw_batches(client.data, client.task.train, seed)
            )

        # the largest first, so that no core waits long for the last one
        order = sorted(range(len(self._clients)), key=lambda i: -len(self._clients[i].data))
        with torch_threads(self._threads_each), ThreadPoolExecutor(self._at_once) as pool:
            done = dict(zip(order, pool.map(train, order), strict=True))
        return [done[index] for index in range(len(self._clients))]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads for one operation inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
