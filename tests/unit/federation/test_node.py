"""A node refuses what is not its federation's, and says so on both sides."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict, UserConfig

from fedapt.core.config import Config, ModelConfig, read_config, remove_paths
from fedapt.core.errors import DataError, FederationError, UsageError
from fedapt.core.report import Reporter
from fedapt.federation.flower.client_app import build_client_app, read_party
from fedapt.federation.flower.node import Node, Party
from fedapt.federation.flower.task import Plan, read_place, read_plan, task_to_record
from fedapt.model.backbone import Backbone
from tests.support.grid import DirectGrid
from tests.support.tiny import write_tiny_clip, write_tiny_images

NAMES = ("blue disc", "red square", "stripes")


@pytest.fixture
def party(tiny_images: Path, tiny_clip: Path) -> Party:
    return Party(tiny_images, "photo", "north", str(tiny_clip))


@pytest.fixture
def plan(tiny_backbone: Backbone) -> Plan:
    return Plan(Config(), NAMES, tiny_backbone.sha256, 2)


class Told(Reporter):
    """Prints what the node's operator is told as it is said on a terminal."""

    def event(self, level: str, text: str, **values: object) -> None:
        print(f"{level}: {text}", file=sys.stderr)


def ask(party: Party, task: ConfigRecord) -> RecordDict:
    """What a node answers when it is to introduce itself."""
    grid = DirectGrid({1: build_client_app(lambda task, context: Node(party), Told())})
    ids = grid.push_messages([Message(RecordDict({"task": task}), 1, MessageType.QUERY)])
    (reply,) = grid.pull_messages(ids)
    return reply.content


def refused(party: Party, task: ConfigRecord, capsys: pytest.CaptureFixture[str]) -> str:
    """The reason that the server is told; the node's operator is told as much."""
    content = ask(party, task)
    assert content.keys() == {"refusal"}
    reason = str(content["refusal"]["reason"])
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert str(party.root) not in reason
    return f"{reason}|{said}"


def test_a_node_introduces_itself(party: Party, plan: Plan) -> None:
    content = ask(party, task_to_record(plan))
    assert content.keys() == {"reply"}
    assert dict(content["reply"]) == {"domain": "photo", "name": "north"}
    nameless = dataclasses.replace(party, name="")
    assert ask(nameless, task_to_record(plan))["reply"]["name"] == "photo"


def test_other_classes(party: Party, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    other = dataclasses.replace(plan, classes=("blue disc", "red square", "dots"))
    told, said = refused(party, task_to_record(other), capsys).split("|")
    expected = "found blue disc, red square, stripes; expected those of the federation: blue disc,"
    assert f"the node's classes: {expected} red square, dots" in told
    assert "the node's classes" in said
    assert "To do: rename the class folders" in said


def test_a_class_may_be_missing_where_that_is_allowed(party: Party, plan: Plan) -> None:
    more = dataclasses.replace(plan, classes=("a class", *NAMES))
    config = read_config(None, ["data.allow_missing_classes=true"])
    allowed = dataclasses.replace(more, config=config)
    node = Node(party)
    assert node.look_up(allowed) == 24  # 30 images, of which each class keeps 2 for testing
    _, domain = node._load(allowed)
    assert domain.train.labels.unique().tolist() == [1, 2, 3]  # the federation's numbers


def test_another_clip(
    party: Party, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = dataclasses.replace(party, model=str(write_tiny_clip(tmp_path / "clip", seed=1)))
    told, said = refused(other, task_to_record(plan), capsys).split("|")
    assert "the node's CLIP: found weights of hash " in told
    assert f"expected those of the federation, {plan.clip_sha256[:12]}" in told
    assert "use the same weights on server and nodes" in said


def test_a_clip_in_a_folder_has_to_be_named(
    party: Party, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    config = remove_paths(read_config(None, ["model.name=/models/clip"]))
    assert config.model.name == ""
    nameless = dataclasses.replace(party, model="")
    task = task_to_record(dataclasses.replace(plan, config=config))
    told, said = refused(nameless, task, capsys).split("|")
    assert "no CLIP; the server's CLIP is a folder on the server" in told
    assert "model=FOLDER" in said


def test_another_version(party: Party, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    record = task_to_record(plan)
    record["protocol"], record["version"] = 4, "9.9"
    told, said = refused(party, record, capsys).split("|")
    assert "version: found protocol 4 of fedapt '9.9'; expected protocol 3" in told
    assert "install the same version of fedapt on server and nodes" in said


def test_a_setting_that_this_version_does_not_know(
    party: Party, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    record = task_to_record(plan)
    record["config"] = '{"train": {"warp": 9}}'
    told, _ = refused(party, record, capsys).split("|")
    assert "the server's message: found the unknown name 'train.warp'" in told


@pytest.mark.parametrize(
    "setting",
    [
        "model.name=/home/node/clip",
        "model.name=../clip",
        "model.pretrained=weights.safetensors",
        "data.root=/home",
        "federation.join=/home/node/run",
    ],
)
def test_a_server_names_no_path_of_the_node(
    setting: str, party: Party, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_to_record(dataclasses.replace(plan, config=read_config(None, [setting])))
    told, _ = refused(party, task, capsys).split("|")
    assert told.startswith("the server's message: found a path of this machine; expected a task")


def test_a_folder_is_not_named_to_the_server(
    party: Party, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_images(tmp_path / "elsewhere", 4, ("photo",))
    lost = dataclasses.replace(party, root=tmp_path / "elsewhere", domain="sketch")
    told, said = refused(lost, task_to_record(plan), capsys).split("|")
    assert told == "DataError; the node's log says more"
    assert str(tmp_path) in said


def test_no_name_of_a_folder_is_a_phrase_of_ours(
    party: Party, plan: Plan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path may begin as our own messages do; the error alone says what may leave the node."""
    error = DataError(where="client photos/a.png", found="a", expected="b", next_step="c")

    def fail(self: Node, plan: Plan) -> int:
        raise error

    monkeypatch.setattr(Node, "look_up", fail)
    told, said = refused(party, task_to_record(plan), capsys).split("|")
    assert told == "DataError; the node's log says more"
    assert "client photos/a.png" in said
    error.shareable = True
    told, _ = refused(party, task_to_record(plan), capsys).split("|")
    assert told == "client photos/a.png: found a; expected b"


def test_only_the_own_domain_is_looked_at(party: Party, plan: Plan, tiny_images: Path) -> None:
    node = Node(party)
    node.look_up(plan)
    _, domain = node._load(plan)
    assert {path.parts[-3] for path in domain.train.table.paths} == {"photo"}
    assert len(domain.train.table.paths) == 30


@pytest.mark.parametrize("value", [-1, 1.0, "0", True, None])
def test_a_place_is_whole_numbers(plan: Plan, value: object) -> None:
    record = ConfigRecord({"client": 0, "domain": 1, "key": 1, "share": 0, "round": 3})
    assert dataclasses.astuple(read_place(record)) == (0, 1, 1, 0, 3)
    if value is None:
        del record["key"]
    else:
        record["key"] = value  # type: ignore[assignment]
    with pytest.raises(FederationError, match="key = "):
        read_place(record)


def test_a_plan_comes_back_as_it_was(plan: Plan) -> None:
    config = read_config(None, ["train.lr=0.3", "data.class_names.mug='a mug'", "data.root=/x"])
    sent = dataclasses.replace(plan, config=remove_paths(config))
    found = read_plan(task_to_record(sent))
    assert found == sent
    assert found.config.train.lr == 0.3
    assert found.config.data.root == ""


def test_no_folder_leaves_the_server() -> None:
    paths = ["data.root=/a", "federation.join=/b", "model.name=/c/clip", "model.pretrained=d/w.pt"]
    assert remove_paths(read_config(None, paths)) == dataclasses.replace(
        Config(), model=ModelConfig("", "")
    )
    named = ["model.name=hf-hub:some/clip", "model.pretrained=openai"]
    kept = remove_paths(read_config(None, named)).model
    assert (kept.name, kept.pretrained) == ("hf-hub:some/clip", "openai")


def test_a_stock_node_reads_its_configuration() -> None:
    config: UserConfig = {"data": "/images", "domain": "photo", "device": "cuda"}
    context = Context(1, 1, config, RecordDict(), {})
    assert read_party(context) == Party(Path("/images"), "photo", device="cuda")
    # an error would begin with a relative one, as if it were a phrase that the server may be told
    config["data"] = "versions"
    assert read_party(context).root == Path.cwd() / "versions"
    config["secure"] = True
    assert read_party(context).secure
    config["min_noise"] = 2
    assert read_party(context).min_noise == 2.0
    config["min_noise"] = "2"
    with pytest.raises(UsageError, match="the node's configuration: found min_noise = nan"):
        read_party(context)
    del config["min_noise"]
    del config["domain"]
    with pytest.raises(Exception, match="the node's configuration: found no domain"):
        read_party(context)


def test_a_node_that_wants_secure_rounds_takes_part_in_no_others(
    party: Party, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    careful = dataclasses.replace(party, secure=True)
    told, said = refused(careful, task_to_record(plan), capsys).split("|")
    assert told.startswith("the node's configuration: found a run without secure aggregation")
    assert "To do: ask the server's operator to change the settings, or change node.toml" in said
    secure = dataclasses.replace(plan, config=read_config(None, ["federation.secure=true"]))
    assert ask(careful, task_to_record(secure)).keys() == {"reply"}


@pytest.mark.parametrize(
    ("floors", "settings", "reason"),
    [
        ({"min_noise": 1.0}, (), "federation.node_noise = 0; expected min_noise = 1"),
        ({"min_noise": 1.0}, ("node_clip=1.0", "node_noise=0.9"), "federation.node_noise = 0.9"),
        ({"max_clip": 2.0}, (), "federation.node_clip = 0; expected above 0, and max_clip = 2"),
        ({"max_clip": 2.0}, ("node_clip=2.1",), "federation.node_clip = 2.1; expected above 0"),
        ({"max_clip": 2.0, "min_noise": 1.0}, ("node_clip=2.0", "node_noise=1.0"), ""),
    ],
)
def test_a_node_takes_part_in_no_run_below_its_floors(
    floors: dict[str, float],
    settings: tuple[str, ...],
    reason: str,
    party: Party,
    plan: Plan,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = read_config(None, [f"federation.{setting}" for setting in settings])
    task = task_to_record(dataclasses.replace(plan, config=config))
    careful = dataclasses.replace(party, **floors)  # type: ignore[arg-type]
    if reason:
        told, _ = refused(careful, task, capsys).split("|")
        assert told.startswith(f"the node's configuration: found {reason}")
    else:
        assert ask(careful, task).keys() == {"reply"}


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf])
def test_a_floor_that_refuses_nothing_is_no_floor(value: float, party: Party) -> None:
    with pytest.raises(UsageError, match="expected a number of 0 or more"):
        dataclasses.replace(party, min_noise=value)
