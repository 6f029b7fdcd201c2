"""A session whose clients are nodes in Flower's simulation runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedapt.core.config import Config, remove_paths
from fedapt.core.errors import UsageError
from fedapt.core.report import Reporter
from fedapt.data.partition import ClientInfo
from fedapt.federation.flower import require_flower
from fedapt.run.aggregation import check_privacy
from fedapt.run.session import Session
from fedapt.training.loop import Engine
from fedapt.training.methods import METHODS
from fedapt.training.sampling import sample_clients

LOCAL, FLOWER = "local", "flower"


def check_engine(engine: str, config: Config) -> None:
    """Refuse an engine that is unknown or not installed, or a method that sends nothing.

    Raises:
        UsageError: an unknown engine, or a method whose clients send nothing.
        ConfigError: a secure sum or noise of nodes that would not hide what it should.
        DependencyError: Flower or Ray is not installed.
    """
    if engine not in (LOCAL, FLOWER):
        raise UsageError(
            where="engine",
            found=repr(engine),
            expected=f"{LOCAL} or {FLOWER}",
            next_step="check the spelling",
        )
    if engine == FLOWER:
        if not METHODS[config.train.method].sends:
            raise UsageError(
                where=f"engine {FLOWER}",
                found=f"the method {config.train.method}, whose clients send nothing",
                expected="a federated method",
                next_step="leave `engine` out, or choose another `method`",
            )
        require_flower("ray")
    check_privacy(config, local=engine == LOCAL)


@contextmanager
def open_engine(
    engine: str, session: Session, device: str, reporter: Reporter
) -> Iterator[Engine | None]:
    """Engine of the session's clients while the block runs; None for this process."""
    if engine == LOCAL:
        yield None
        return
    from fedapt.federation.flower.engine import FlowerEngine
    from fedapt.federation.flower.simulation import simulate
    from fedapt.federation.flower.task import Plan
    from fedapt.federation.flower.watch import Watch

    config, method = session.config, session.method
    clients = method.setting.clients
    n_nodes = len(sample_clients(clients, config.federation, config.train.seed, 0))
    model, backbone = config.model, session.backbone
    reporter.message(f"Flower: {n_nodes} simulated nodes")
    with simulate(
        Path(config.data.root), session.trained, n_nodes, model.name, model.pretrained, device
    ) as grid:
        nodes = sorted(grid.get_node_ids())

        def find_nodes(clients: Sequence[ClientInfo]) -> Mapping[int, int]:
            # a simulated node trains the client that the message names
            return {client.index: nodes[i] for i, client in enumerate(clients)}

        plan = Plan(
            remove_paths(config), method.setting.class_names, backbone.sha256, method.setting.n_keys
        )
        yield FlowerEngine(method, plan, grid, find_nodes, Watch(reporter))
