"""The local engine: every client in this process, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def train_round(self, start: Learned, round_number: int) -> list[ClientUpdate]:
        """Train all clients from `start`; the same round draws the same batches in any process."""
        updates = []
        for index, client in enumerate(self._clients):
            seed = child_seed(self._seed, "batches", round_number, index)
            batches = draw_batches(client.data, client.task.train, seed)
            updates.append(train_client(client.task, start, batches))
        return updates
