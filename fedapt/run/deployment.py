"""The server of a federation: a training job whose images are all on nodes.

The server's process calls it (`federation.flower.server`), or Flower calls it as a ServerApp in the
server's folder. The rounds, the checkpoint and resuming are those of `fedapt train`. A stopped run
continues from its checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedapt.core.config import Config, flatten, read_config, remove_paths
from fedapt.core.errors import ConfigError, ReportedError
from fedapt.core.files import claim_folder
from fedapt.core.report import PlainReporter, Reporter
from fedapt.data.partition import ClientInfo, choose_key
from fedapt.federation.flower.engine import FlowerEngine
from fedapt.federation.flower.registry import NodeRegistry
from fedapt.federation.flower.settings import ServerSettings, read_server
from fedapt.federation.flower.task import Plan
from fedapt.federation.flower.watch import Watch
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.run.folder import RunFolder
from fedapt.run.remote_session import RemoteSession
from fedapt.run.simulation import FLOWER, check_engine
from fedapt.training.loop import Progress
from fedapt.training.methods import METHODS

LIVE, REGISTRY = "live.jsonl", "nodes.json"


class _Grown(Exception):
    """A new node has joined the session."""


def serve(
    grid: Grid,
    folder: Path,
    reporter: Reporter,
    name_nodes: Callable[[], Mapping[int, str]] | None = None,
) -> None:
    """Train with the connected nodes to the last round.

    Args:
        folder: folder of `server.toml`.
        name_nodes: numbers of the nodes that are connected, and the names of their keys; None where
            nodes have no keys, as with Flower's own programs.

    Raises:
        ReportedError: see `core.errors`; every file in the run folder is complete at any moment.
    """
    server = read_server(folder)
    run = RunFolder(folder / server.out)
    with claim_folder(run.path):
        watch = Watch(reporter, run.path / LIVE)
        try:
            _serve(grid, folder, server, run, watch, reporter, name_nodes)
        except ReportedError as error:
            watch.failed(str(error))
            raise
        except Exception as error:  # report the failure to the commands that wait for the end
            watch.failed(f"{type(error).__name__}: {error}; the server's log says more")
            raise
        watch.finished()


def _serve(
    grid: Grid,
    folder: Path,
    server: ServerSettings,
    run: RunFolder,
    watch: Watch,
    reporter: Reporter,
    name_nodes: Callable[[], Mapping[int, str]] | None,
) -> None:
    config = resolve_deployment(read_config(folder / server.settings))
    run.check(config, resume=True)
    run.begin(config)
    backbone = load_backbone(
        config.model.name, config.model.pretrained, depth=config.data.preprocess
    )
    reporter.message(f"model: {backbone.label}")
    plan = Plan(remove_paths(config), server.classes, backbone.sha256, 0)
    name = name_nodes or (lambda: dict.fromkeys(grid.get_node_ids(), ""))
    registry = NodeRegistry(run.path / REGISTRY, grid, name, plan, watch, server.domains)
    keys = folder / server.nodes
    registry.wait(
        server.min_nodes,
        server.wait_seconds,
        lambda: [path.stem for path in keys.glob("*.pub")] if name_nodes else [],
    )
    while not _train(grid, config, plan, backbone, registry, run, watch, reporter):
        reporter.message("a new node takes part from the next round on")


def read_deployment(folder: Path) -> tuple[ServerSettings, Config]:
    """`server.toml` and the settings of the training, as its method resolves them.

    Raises:
        ConfigError: a wrong name or value, or a setting for images on one machine.
        UsageError: no TLS on an address that others can reach, or a method that sends nothing.
    """
    server = read_server(folder)
    return server, resolve_deployment(read_config(folder / server.settings))


def resolve_deployment(config: Config) -> Config:
    """Settings of a training with remote images only, as its method resolves them.

    Raises:
        ConfigError: a setting for images on one machine, or a secure sum or noise of nodes that
            would not hide what it should.
        UsageError: a method that sends nothing.
    """
    check_engine(FLOWER, config)
    _check_own_images(config)
    return METHODS[config.train.method].resolve(config)


def _train(
    grid: Grid,
    config: Config,
    plan: Plan,
    backbone: Backbone,
    registry: NodeRegistry,
    run: RunFolder,
    watch: Watch,
    reporter: Reporter,
) -> bool:
    """Train to the end (True), or until a new node joins (False)."""
    known = load_checkpoint(run.checkpoint) if run.checkpoint.is_file() else None
    session = RemoteSession(config, backbone, plan.classes, *_place(registry, config), known)
    plan = dataclasses.replace(plan, n_keys=session.method.setting.n_keys)
    engine = FlowerEngine(session.method, plan, grid, registry.find_nodes, watch)
    start = session.resume(run) if known else session.begin()
    if start.rounds:
        reporter.message(f"resuming after round {start.rounds}")
    write = session.saver(run)

    def save(progress: Progress) -> None:
        write(progress)
        watch.finished_round(progress.records[-1], config.train.rounds)
        registry.connected()
        if progress.rounds < config.train.rounds and registry.admit():
            raise _Grown

    try:
        session.run(start, save, reporter, engine)
    except _Grown:
        return False
    return True


def _place(
    registry: NodeRegistry, config: Config
) -> tuple[tuple[str, ...], tuple[ClientInfo, ...]]:
    """The domains that train, and a client without images for every member."""
    domains = registry.domains
    n_keys = config.prompt.n_keys or len(domains)
    clients: list[ClientInfo] = []
    for index, member in enumerate(registry.members):
        domain = domains.index(member.domain)
        place = sum(client.domain == domain for client in clients)
        key = choose_key(domain, place, n_keys, len(domains))
        clients.append(ClientInfo(index, member.name, domain, key))
    return domains, tuple(clients)


def _check_own_images(config: Config) -> None:
    """Refuse settings that need all images on one machine.

    Raises:
        ConfigError: a setting that divides images, leaves out a domain or joins a federation.
    """
    defaults = flatten(Config())
    for name in ("federation.clients_per_domain", "federation.join", "data.leave_out"):
        if (value := flatten(config)[name]) != defaults[name]:
            raise ConfigError(
                where=f"{name} = {value!r}",
                found="a setting that needs all images on one machine",
                expected=f"the default {defaults[name]!r}, because every node has its own images",
                next_step="remove the setting",
            )


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The ServerApp for Flower's own SuperLink; its process runs in the server's folder."""
    reporter = PlainReporter()
    try:
        serve(grid, Path.cwd(), reporter)
    except ReportedError as error:
        reporter.event("error", f"error: {error}")
        raise
