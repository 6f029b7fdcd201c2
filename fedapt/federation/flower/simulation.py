"""Flower's simulation runtime: one node for each client of a round, in Ray's processes.

A simulated node reads its party's images from the run's folder, and the message names the party. In
all other respects it is the node of a deployment.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedapt.core.errors import FederationError
from fedapt.federation.flower import require_flower
from fedapt.federation.flower.client_app import build_client_app
from fedapt.federation.flower.node import Node, Party
from fedapt.federation.flower.task import read_place

_START_S = 300.0


@contextmanager
def simulate(
    root: Path, domains: tuple[str, ...], n_nodes: int, model: str, pretrained: str, device: str
) -> Iterator[Grid]:
    """A Grid with simulated nodes, while the block runs.

    Args:
        root: ROOT of ROOT/<domain>/<class>/<images>.
        domains: domains that train, in the order of their indices.
        n_nodes: number of nodes; each trains any client.

    Raises:
        DependencyError: Ray is not installed.
        FederationError: the runtime does not start, or ends before the block.
    """
    require_flower("ray")
    # Flower warns about its only way to start a simulation from Python, and Ray prints tips
    logging.getLogger("flwr").setLevel(logging.ERROR)
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

    def find_node(task: ConfigRecord, context: Context) -> Node:
        return _play(Party(root, domains[read_place(task).domain], "", model, pretrained, device))

    grids: queue.Queue[Grid | BaseException] = queue.Queue()
    finished = threading.Event()
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        grids.put(grid)
        finished.wait()

    def run() -> None:
        try:
            run_simulation(
                app,
                build_client_app(find_node),
                n_nodes,
                backend_config={
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                    "init_args": {"log_to_driver": False, "logging_level": logging.ERROR},
                },
            )
        except BaseException as error:  # the waiting thread raises it
            grids.put(error)

    # in a thread, so that the rounds stay in this one, as with any other engine
    thread = threading.Thread(target=run, name="flower simulation", daemon=True)
    thread.start()
    try:
        grid = grids.get(timeout=_START_S)
        if isinstance(grid, BaseException):
            raise FederationError(
                where="engine flower",
                found=f"{type(grid).__name__}: {grid}",
                expected="Flower's simulation runtime",
                next_step="train with `engine` local, or see Flower's messages above",
            ) from grid
        _wait_for_nodes(grid, n_nodes)
        yield grid
    finally:
        finished.set()
        thread.join(_START_S)


def _wait_for_nodes(grid: Grid, n_nodes: int) -> None:
    """Wait for all nodes: the runtime starts the server before it has registered them."""
    started = time.monotonic()
    while len(list(grid.get_node_ids())) < n_nodes:
        if time.monotonic() - started > _START_S:
            raise FederationError(
                where="engine flower",
                found=f"{len(list(grid.get_node_ids()))} simulated nodes",
                expected=str(n_nodes),
                next_step="train with `engine` local, or see Flower's own messages above",
            )
        time.sleep(0.1)


@lru_cache(maxsize=16)
def _play(party: Party) -> Node:
    """The party of a simulated node, cached in its process."""
    return Node(party)
