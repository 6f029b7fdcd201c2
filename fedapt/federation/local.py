"""The local engine: all clients in this process, as many at a time as there are cores.

A client's steps are many small operations. One core runs them about as fast as two cores, and much
faster if another process uses the same cores. The engine therefore runs clients side by side, each
on its own share of the cores. Steps of many classes are large operations, which keep every core
busy by themselves, so parallel steps take 4 GiB at most. A client's result does not depend on the
other clients. On a GPU, clients run one after another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from fedapt.core.config import Config
from fedapt.data.partition import Client, ClientInfo
from fedapt.model.threads import torch_threads
from fedapt.training.aggregate import aggregate
from fedapt.training.client import ClientUpdate, train_round
from fedapt.training.loop import RoundResult
from fedapt.training.methods.base import Learned, Method, n_bytes
from fedapt_runtime.machine import usable_cores, usable_memory

_DEFAULT_MEMORY_BYTES = 16 << 30
# of all parallel steps; 345 classes of ViT-B/32 take as long with one client at a time
_MAX_STEP_BYTES = 4 << 30
# started clients per running one; replies wait for slower ones, so memory limits them
_BEGUN_EACH = 4


class LocalEngine:
    """Runs a round's clients in threads. See `train.loop.Engine`.

    Args:
        method: the method; its clients have their images in this process.
        config: settings of the run; by default the method's.
    """

    def __init__(self, method: Method, config: Config | None = None) -> None:
        self._method, self._config = method, config or method.setting.config

    def run_round(
        self, start: Learned, clients: Sequence[ClientInfo], round_number: int
    ) -> RoundResult:
        """Train the round's clients in parallel, and aggregate.

        Raises:
            FederationError: a loss or an update is not finite, or too few replies to aggregate.
        """
        method = self._method
        updates = self.train_clients(start, [_with_images(c) for c in clients], round_number)
        found = aggregate(self._config, method, start, clients, updates)
        sent = [n_bytes(method.share(start, client)) for client in clients]
        return RoundResult(
            found.learned,
            found.loss,
            found.n_images,
            # each client receives the learned tensors and sends them back
            n_bytes=2 * sum(sent) if method.sends else 0,
            noise_multiplier=found.noise_multiplier,
        )

    def train_clients(
        self, start: Learned, clients: Sequence[Client], round_number: int
    ) -> Iterator[ClientUpdate]:
        """Train from `start`; the same round draws the same batches in any process.

        Replies come largest client first, so that no core waits long for the last one.
        """
        order = sorted(clients, key=lambda client: -len(client.data))
        at_once = self._count_at_once(order)
        threads_each = max(1, usable_cores() // at_once)

        def train(client: Client) -> ClientUpdate:
            share = self._method.share(start, client)
            return train_round(self._method, client, share, self._config.train, round_number)

        begun: deque[Future[ClientUpdate]] = deque()
        with torch_threads(threads_each), ThreadPoolExecutor(at_once) as pool:
            try:
                for client in order:
                    if len(begun) == _BEGUN_EACH * at_once:
                        yield begun.popleft().result()
                    begun.append(pool.submit(train, client))
                while begun:
                    yield begun.popleft().result()
            finally:
                for future in begun:
                    future.cancel()

    def _count_at_once(self, clients: Sequence[Client]) -> int:
        if not self._method.side_by_side or any(c.data.rows.is_cuda for c in clients):
            return 1
        step = max(1, self._method.step_bytes)
        memory = usable_memory() or _DEFAULT_MEMORY_BYTES
        allowed = min(memory // 2, _MAX_STEP_BYTES)
        return max(1, min(usable_cores(), len(clients), allowed // step))


def _with_images(client: ClientInfo) -> Client:
    assert isinstance(client, Client)  # the local engine has no other clients
    return client
