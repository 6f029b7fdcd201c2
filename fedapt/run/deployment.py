"""The server of a federation: training as a job whose images are all elsewhere.

Runs as a Flower ServerApp in the server's folder (`federation.flower.settings`). The rounds, the
checkpoint and resuming are those of `fedapt train`; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedapt.core.config import Config, flatten, read_config, remove_paths
from fedapt.core.errors import ConfigError, ReportedError
from fedapt.core.files import claim_folder
from fedapt.core.report import Reporter
from fedapt.data.partition import ClientInfo, choose_key
from fedapt.federation.flower.engine import FlowerEngine
from fedapt.federation.flower.roster import Roster
from fedapt.federation.flower.settings import ServerSettings, read_server
from fedapt.federation.flower.task import Plan
from fedapt.federation.flower.watch import Watch
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.run.folder import RunFolder
from fedapt.run.remote_session import RemoteSession
from fedapt.run.simulation import FLOWER, check_engine
from fedapt.train.loop import Progress
from fedapt.train.methods import METHODS

LIVE, ROSTER = "live.jsonl", "nodes.json"


class _Grown(Exception):
    """A node has joined that the session does not know."""


def serve(grid: Grid, folder: Path, reporter: Reporter) -> None:
    """Train with the nodes that are there, to the last round.

    Args:
        folder: of `server.toml`.

    Raises:
        ReportedError: see `core.errors`; every file in the run folder is whole at any moment.
    """
    server, config = read_deployment(folder)
    run = RunFolder(folder / server.out)
    with claim_folder(run.path):
        _serve(grid, folder, server, config, run, reporter)


def _serve(
    grid: Grid,
    folder: Path,
    server: ServerSettings,
    config: Config,
    run: RunFolder,
    reporter: Reporter,
) -> None:
    watch = Watch(reporter, run.path / LIVE)
    try:
        run.check(config, resume=True)
        run.begin(config)
        backbone = load_backbone(
            config.model.name, config.model.pretrained, depth=config.data.preprocess
        )
        reporter.message(f"model: {backbone.label}")
        plan = Plan(remove_paths(config), server.classes, backbone.sha256, 0)
        roster = Roster(run.path / ROSTER, grid, plan, watch, server.domains)
        keys = folder / server.nodes
        roster.wait(
            server.least_nodes,
            server.wait_seconds,
            lambda: [] if server.insecure else [path.stem for path in keys.glob("*.pub")],
        )
        while not _train(grid, config, plan, backbone, roster, run, watch, reporter):
            reporter.message("a new node: it takes part from the next round on")
    except ReportedError as error:
        watch.failed(str(error))
        raise
    watch.finished()


def read_deployment(folder: Path) -> tuple[ServerSettings, Config]:
    """`server.toml` and the settings of the training, as its method settles them.

    Raises:
        ConfigError: a wrong name or value, or a setting for images on one machine.
        UsageError: unencrypted where others can listen, or a method that sends nothing.
    """
    server = read_server(folder)
    return server, settle_deployment(read_config(folder / server.settings))


def settle_deployment(config: Config) -> Config:
    """Settings of a training whose images are all elsewhere, as its method settles them.

    Raises:
        ConfigError: a setting for images on one machine, or a secure sum or noise of nodes that
            would not hide what it should.
        UsageError: a method that sends nothing.
    """
    check_engine(FLOWER, config)
    _check_own_images(config)
    return METHODS[config.train.method].settle(config)


def _train(
    grid: Grid,
    config: Config,
    plan: Plan,
    backbone: Backbone,
    roster: Roster,
    run: RunFolder,
    watch: Watch,
    reporter: Reporter,
) -> bool:
    """Train to the end, True, or until a node joins that is new."""
    known = load_checkpoint(run.checkpoint) if run.checkpoint.is_file() else None
    session = RemoteSession(config, backbone, plan.classes, *_place(roster, config), known)
    plan = dataclasses.replace(plan, n_keys=session.method.setting.n_keys)
    engine = FlowerEngine(session.method, plan, grid, roster.find_nodes, watch)
    start = session.resume(run) if known else session.begin()
    if start.rounds:
        reporter.message(f"resuming after round {start.rounds}")
    write = session.saver(run)

    def save(progress: Progress) -> None:
        write(progress)
        watch.finished_round(progress.records[-1], config.train.rounds)
        roster.connected()
        if progress.rounds < config.train.rounds and roster.admit():
            raise _Grown

    try:
        session.run(start, save, reporter, engine)
    except _Grown:
        return False
    return True


def _place(roster: Roster, config: Config) -> tuple[tuple[str, ...], tuple[ClientInfo, ...]]:
    """The domains that train, and a client without images for every member."""
    domains = roster.domains
    n_keys = config.prompt.n_keys or len(domains)
    clients: list[ClientInfo] = []
    for index, member in enumerate(roster.members):
        domain = domains.index(member.domain)
        place = sum(client.domain == domain for client in clients)
        key = choose_key(domain, place, n_keys, len(domains))
        clients.append(ClientInfo(index, member.name, domain, key))
    return domains, tuple(clients)


def _check_own_images(config: Config) -> None:
    """Refuse settings that only one machine with everybody's images can follow.

    Raises:
        ConfigError: images to be dealt out, a domain to be left out, or a federation to be joined.
    """
    defaults = flatten(Config())
    for name in ("federation.clients_per_domain", "federation.join", "data.leave_out"):
        if (value := flatten(config)[name]) != defaults[name]:
            raise ConfigError(
                where=f"{name} = {value!r}",
                found="a setting for images that are all on one machine",
                expected=f"{defaults[name]!r}: every node has its own",
                next_step="leave it out; nodes join and stay away by themselves",
            )


class _LogReporter(Reporter):
    """Lines on stdout, which Flower carries to whoever streams the run's log."""

    def message(self, text: str) -> None:
        print(text, flush=True)


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The ServerApp of a deployment; its process stands in the server's folder."""
    try:
        serve(grid, Path.cwd(), _LogReporter())
    except ReportedError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise
