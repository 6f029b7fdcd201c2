"""The server of a federation, with nodes that answer in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from fedapt.core.config import read_config
from fedapt.core.errors import ConfigError, FederationError
from fedapt.core.records import read_records
from fedapt.core.report import Reporter
from fedapt.federation.flower.client_app import build_client_app
from fedapt.federation.flower.files import Deployment, write_deployment
from fedapt.federation.flower.follow import Federation
from fedapt.federation.flower.node import Node, Party
from fedapt.model.checkpoint import load_checkpoint
from fedapt.run.deployment import serve
from fedapt.run.train import train
from tests.support.grid import DirectGrid
from tests.support.tiny import write_tiny_images

NAMES = ("blue disc", "red square", "stripes")
SETTINGS = (
    "train.lr=0.1",
    "train.batch_size=8",
    "train.evaluate_every=2",
    "data.validation_fraction=0.2",
    "prompt.context_length=4",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parties") / "data"
    return write_tiny_images(root, 8, ("cartoon", "photo", "sketch"))


def write_server(folder: Path, clip: Path, least: int, rounds: int, *more: str) -> Path:
    config = read_config(
        None, [*SETTINGS, *more], {"model.name": str(clip), "train.rounds": rounds}
    )
    nodes = {f"n{i}": "x" for i in range(least)}
    write_deployment(folder, Deployment("127.0.0.1:1234", NAMES, nodes, "data", config))
    return folder / "server"


def append(server: Path, line: str) -> None:
    path = server / "server.toml"
    path.write_text(f"{path.read_text()}{line}\n")


def node_of(images: Path, clip: Path, domain: str, name: str = ""):
    node = Node(Party(images, domain, name, str(clip)))
    return build_client_app(lambda task, context: node)


def events(server: Path, kind: str) -> list[dict]:
    lines = (server / "run" / "live.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == kind]


class Lines(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def test_a_server_without_images_learns_what_one_machine_learns(
    tmp_path: Path, images: Path, tiny_clip: Path
) -> None:
    server = write_server(tmp_path / "d", tiny_clip, 3, 4)
    # nodes come in any order; domain and name decide
    grid = DirectGrid(
        {
            5: node_of(images, tiny_clip, "sketch"),
            7: node_of(images, tiny_clip, "cartoon"),
            9: node_of(images, tiny_clip, "photo"),
        }
    )
    serve(grid, server, Reporter())
    found = load_checkpoint(server / "run" / "checkpoint.safetensors")

    options = {"data.root": str(images), "model.name": str(tiny_clip), "train.rounds": 4}
    config = read_config(None, SETTINGS, options)
    train(config, tmp_path / "l", resume=False, device="cpu", reporter=Reporter())
    expected = load_checkpoint(tmp_path / "l" / "checkpoint.safetensors")
    assert found.info == expected.info
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=1e-6)
    local = read_records(tmp_path / "l" / "records.jsonl")
    for one, other in zip(local, read_records(server / "run" / "records.jsonl"), strict=True):
        for field in ("accuracy", "validation", "mean_validation"):
            assert other.get(field) == pytest.approx(one.get(field))
    best = load_checkpoint(server / "run" / "best.safetensors")
    assert best.info.rounds == load_checkpoint(tmp_path / "l" / "best.safetensors").info.rounds
    assert [e["event"] for e in events(server, "finished")] == ["finished"]


def test_a_node_that_joins_later_disturbs_nobody(
    tmp_path: Path, images: Path, tiny_clip: Path
) -> None:
    server = write_server(tmp_path / "d", tiny_clip, 2, 6)
    late = node_of(images, tiny_clip, "cartoon")

    def join(node: int, reply: Message) -> Message:
        if reply.metadata.group_id == "2":  # in the second round, and before all others by name
            grid.apps[99] = late
        return reply

    first = {1: node_of(images, tiny_clip, "photo"), 2: node_of(images, tiny_clip, "sketch")}
    grid = DirectGrid(first, join)
    kept: dict[int, torch.Tensor] = {}

    class Watching(Lines):
        def message(self, text: str) -> None:
            super().message(text)
            if text.startswith("a new node"):
                before = load_checkpoint(server / "run" / "checkpoint.safetensors")
                assert before.keys is not None
                kept[before.info.rounds] = before.keys

    reporter = Watching()
    serve(grid, server, reporter)
    found = load_checkpoint(server / "run" / "checkpoint.safetensors")
    assert found.info.domains == found.info.keys == ("photo", "sketch", "cartoon")
    assert found.info.rounds == 6
    assert found.keys is not None
    assert found.learned["adaptive_network"].shape[0] == 3
    ((rounds, keys),) = kept.items()
    assert rounds in (2, 3)
    assert torch.equal(found.keys[:2], keys)
    assert not torch.equal(found.keys[2], found.keys[0])
    records = read_records(server / "run" / "records.jsonl")
    assert [r["round"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["clients"] for r in records] == [2] * rounds + [3] * (6 - rounds)
    nodes = json.loads((server / "run" / "nodes.json").read_text())
    assert [m["name"] for m in nodes] == ["photo", "sketch", "cartoon"]


def test_two_nodes_of_one_domain_share_its_key(
    tmp_path: Path, images: Path, tiny_clip: Path
) -> None:
    server = write_server(tmp_path / "d", tiny_clip, 3, 2)
    nodes = (("photo", "north"), ("sketch", "west"), ("photo", "east"))
    grid = DirectGrid(
        {i: node_of(images, tiny_clip, domain, name) for i, (domain, name) in enumerate(nodes)}
    )
    serve(grid, server, Reporter())
    found = load_checkpoint(server / "run" / "checkpoint.safetensors").info
    assert (found.domains, found.clients) == (("photo", "sketch"), (0, 0, 1))
    record = read_records(server / "run" / "records.jsonl")[-1]
    assert record["client_seconds"].keys() == {"east", "north", "west"}
    assert record["accuracy"].keys() == {"photo", "sketch"}
    tasks = [m.content["task"] for m in grid.messages if "client" in m.content["task"]]
    assert {(task["client"], task["key"]) for task in tasks} == {(0, 0), (1, 0), (2, 1)}


def test_names_that_are_taken_or_strange(tmp_path: Path, images: Path, tiny_clip: Path) -> None:
    server = write_server(tmp_path / "d", tiny_clip, 1, 1)
    append(server, 'domains = ["photo", "cartoon"]')
    nodes = (("photo", "a"), ("photo", "a"), ("cartoon", "../b"), ("sketch", "c"))
    grid = DirectGrid(
        {i: node_of(images, tiny_clip, domain, name) for i, (domain, name) in enumerate(nodes)}
    )
    lines = Lines()
    serve(grid, server, lines)
    assert "a: joined with domain photo" in lines.said
    away = {e["name"]: e["reason"] for e in events(server, "turned away")}
    assert away == {
        "a": "a name that another connected node has",
        "node 2": "no name and domain of plain characters",
        "c": "the unknown domain 'sketch'",
    }


def test_a_name_is_that_of_the_key(tmp_path: Path, images: Path, tiny_clip: Path) -> None:
    server = write_server(tmp_path / "d", tiny_clip, 1, 1)
    grid = DirectGrid(
        {
            1: node_of(images, tiny_clip, "photo", "north"),
            2: node_of(images, tiny_clip, "sketch", "east"),
        }
    )
    serve(grid, server, Reporter(), lambda: {1: "north", 2: "west"})
    assert [e["name"] for e in events(server, "joined")] == ["north"]
    (away,) = events(server, "turned away")
    assert (away["name"], away["reason"]) == ("east", "the key of west")


def test_too_few_nodes(tmp_path: Path, images: Path, tiny_clip: Path) -> None:
    server = write_server(tmp_path / "d", tiny_clip, 3, 1)
    append(server, "wait_seconds = 0.5")
    grid = DirectGrid({1: node_of(images, tiny_clip, "photo")})
    with pytest.raises(FederationError, match=r"found 1 nodes \(photo\); expected 3 \(min_nodes"):
        serve(grid, server, Reporter())
    (failed,) = events(server, "failed")
    assert "found 1 nodes (photo)" in failed["reason"]
    assert not (server / "run" / "checkpoint.safetensors").exists()


def test_a_damaged_registry(tmp_path: Path, images: Path, tiny_clip: Path) -> None:
    server = write_server(tmp_path / "d", tiny_clip, 1, 1)
    (server / "run").mkdir()
    (server / "run" / "nodes.json").write_text('[{"nam": 1}]')
    with pytest.raises(FederationError, match=r"nodes\.json: found KeyError"):
        serve(DirectGrid({}), server, Reporter())


@pytest.mark.parametrize(
    "setting", ["federation.clients_per_domain=2", "data.leave_out='photo'", "federation.join='x'"]
)
def test_settings_for_one_machine(tmp_path: Path, tiny_clip: Path, setting: str) -> None:
    server = write_server(tmp_path / "d", tiny_clip, 1, 1, setting)
    with pytest.raises(ConfigError, match="because every node has its own images") as caught:
        serve(DirectGrid({}), server, Reporter())
    assert caught.value.where.startswith(setting.partition("=")[0])
    assert [path.name for path in (server / "run").iterdir()] == ["live.jsonl"]
    assert len(events(server, "failed")) == 1


def test_noise_has_to_be_bounded(tmp_path: Path, images: Path, tiny_clip: Path) -> None:
    server = write_server(tmp_path / "d", tiny_clip, 1, 1, "federation.noise=1.0")
    grid = DirectGrid({1: node_of(images, tiny_clip, "photo")})
    with pytest.raises(ConfigError, match="a clip above 0, the uniform mean"):
        serve(grid, server, Reporter())


def test_the_live_view_adds_up(tmp_path: Path, images: Path, tiny_clip: Path) -> None:
    server = write_server(tmp_path / "d", tiny_clip, 2, 2, "federation.round_seconds=0.5")
    grid = DirectGrid(
        {i: node_of(images, tiny_clip, domain) for i, domain in enumerate(("photo", "sketch"))},
        lambda node, reply: None if reply.metadata.group_id == "2" and node else reply,
    )
    serve(grid, server, Reporter())
    view = Federation()
    for line in (server / "run" / "live.jsonl").read_text().splitlines():
        view.add(json.loads(line))
    assert (view.end, view.rounds, len(view.records)) == ("finished", 2, 2)
    assert view.nodes["photo"].refused == 0
    assert view.nodes["photo"].images == 15  # of 24, 3 are for testing and 6 for validation
    assert view.nodes["sketch"].refused == 2  # training and evaluation of the second round
    assert view.nodes["sketch"].reason.startswith("no reply within")
    assert view.accuracy.keys() == {"photo"}
    # half of the domains choose no round
    assert "mean_validation" not in view.records[1]
    assert "mean_accuracy" in view.records[1]
