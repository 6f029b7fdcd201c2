"""Sessions whose nodes answer in this process, over real messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from flwr.app import Message

from fedapt.core.config import Config, read_config, remove_paths
from fedapt.core.report import Reporter
from fedapt.data.domains import load_domains
from fedapt.data.folders import scan_folders
from fedapt.data.partition import ClientInfo
from fedapt.data.splits import split_as_configured
from fedapt.federation.flower.client_app import build_client_app
from fedapt.federation.flower.engine import FlowerEngine
from fedapt.federation.flower.node import Node, Party
from fedapt.federation.flower.task import Plan
from fedapt.federation.flower.watch import Watch
from fedapt.model.backbone import Backbone
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.session import Session
from fedapt.training.loop import Progress, RoundResult
from fedapt.training.methods import METHODS, Learned
from tests.support.grid import DirectGrid


def configure(root: Path, clip: Path, *settings: str) -> Config:
    always = ("train.rounds=2", "train.lr=0.1", "train.batch_size=8", "prompt.context_length=4")
    few = ("unsupervised.warm_up_rounds=1", "train.images_per_round=8")
    options = {"data.root": str(root), "model.name": str(clip)}
    config = read_config(None, [*always, *few, *settings], options)
    return METHODS[config.train.method].resolve(config)


def open_session(config: Config, backbone: Backbone) -> Session:
    folders = scan_folders(Path(config.data.root))
    split = split_as_configured(folders, config.data)
    domains = load_domains(folders, split, image_encoder(backbone), Reporter())
    return Session(config, backbone, folders, domains)


def connect(
    session: Session, change: Callable[[int, Message], Message | None] | None = None
) -> DirectGrid:
    """Let nodes train, each of which is told its own domain alone."""
    config, setting = session.config, session.method.setting
    clients = setting.clients
    apps = {}
    for client in clients:
        party = Party(Path(config.data.root), session.trained[client.domain], "", config.model.name)
        node = Node(party)
        apps[10 + client.index] = build_client_app(lambda task, context, node=node: node)
    grid = DirectGrid(apps)
    if change is not None:
        grid.change = change

    def find_nodes(clients: Sequence[ClientInfo]) -> Mapping[int, int]:
        return {c.index: 10 + c.index for c in clients}

    plan = Plan(remove_paths(config), setting.class_names, session.backbone.sha256, setting.n_keys)
    engine = FlowerEngine(session.method, plan, grid, find_nodes, Watch(Reporter()))
    _ENGINES[session] = engine
    return grid


def run_round(session: Session, start: Learned, round_number: int) -> RoundResult:
    """One round of all clients, by the nodes that `connect` has given the session."""
    return _ENGINES[session].run_round(start, session.method.setting.clients, round_number)


def run(session: Session) -> Progress:
    """By its nodes where `connect` has given it some, else by this process."""
    engine = _ENGINES.get(session)
    return session.run(session.begin(), lambda progress: None, Reporter(), engine)


_ENGINES: WeakKeyDictionary[Session, FlowerEngine] = WeakKeyDictionary()
