"""A server and nodes as real processes on loopback, with TLS and node keys."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedapt.cli.app import main
from fedapt.core.config import Config, read_config
from fedapt.core.records import Record, read_records
from fedapt.core.report import Reporter
from fedapt.federation.flower.files import Deployment as Deployed
from fedapt.federation.flower.files import write_deployment
from fedapt.model.checkpoint import load_checkpoint
from fedapt.run.train import train
from tests.support.federation import FEDAPT, Deployment, deploy, find_port, processes_of
from tests.support.tiny import CLASSES, write_tiny_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

DOMAINS = ("cartoon", "painting", "photo", "sketch")
NAMES = tuple(name.replace("_", " ") for name in CLASSES)
SETTINGS = (
    "train.lr=0.1",
    "train.batch_size=8",
    "train.evaluate_every=2",
    "prompt.context_length=4",
    "train.seed=3",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_images(tmp_path_factory.mktemp("federation") / "data", 6, DOMAINS)


@pytest.fixture
def deployment(
    tmp_path: Path, images: Path, tiny_clip: Path, request: pytest.FixtureRequest
) -> Iterator[Deployment]:
    rounds, seconds = request.param
    more = (f"train.rounds={rounds}", f"federation.round_seconds={seconds}")
    folder = tmp_path / "deployment"
    with deploy(folder, DOMAINS, NAMES, images, tiny_clip, *SETTINGS, *more) as found:
        yield found
    # Flower's own processes see within seconds that their parent is gone
    found.wait_until(lambda: processes_of(folder) == [], 30.0)


def train_locally(out: Path, images: Path, clip: Path, rounds: int, seconds: float) -> None:
    """A run of the local engine with the same settings."""
    options = {"data.root": str(images), "model.name": str(clip), "train.rounds": rounds}
    options["federation.round_seconds"] = float(seconds)
    config = read_config(None, SETTINGS, options)
    train(config, out, resume=False, device="cpu", reporter=Reporter())


def assert_same(one: Path, other: Path) -> None:
    """To the rounding of other numbers of threads; all that is written down is equal."""
    expected, found = load_checkpoint(one), load_checkpoint(other)
    assert found.info == expected.info
    assert found.learned.keys() == expected.learned.keys()
    for name, tensor in expected.learned.items():
        torch.testing.assert_close(found.learned[name], tensor, rtol=0, atol=1e-6)


def find_missed(deployment: Deployment) -> list[Record]:
    """The rounds that did without somebody."""
    return [r for r in read_records(deployment.run / "records.jsonl") if "refused" in r]


@pytest.mark.parametrize("deployment", [(10, 15)], indirect=True)
def test_a_node_dies_and_comes_back(deployment: Deployment) -> None:
    deployment.start_server()
    for name in DOMAINS:
        deployment.start_node(name)
    deployment.start_training()

    deployment.wait_for_round(2)
    deployment.kill("painting")
    deployment.wait_until(lambda: find_missed(deployment) != [])
    deployment.start_node("painting")

    assert deployment.wait_for_end("train") == 0
    records = read_records(deployment.run / "records.jsonl")
    assert [r["round"] for r in records] == list(range(1, 11))
    assert records[1]["replies"] == 4
    missed = find_missed(deployment)
    assert missed
    assert all(r["refused"].keys() == {"painting"} and r["replies"] == 3 for r in missed)
    assert records[-1]["replies"] == 4
    assert records[-1]["accuracy"].keys() == set(DOMAINS)
    assert load_checkpoint(deployment.run / "checkpoint.safetensors").info.domains == DOMAINS


@pytest.mark.parametrize("deployment", [(4, 60)], indirect=True)
def test_a_killed_server_goes_on_where_it_was(
    deployment: Deployment, tmp_path: Path, images: Path, tiny_clip: Path
) -> None:
    deployment.start_server()
    for name in DOMAINS:
        deployment.start_node(name)
    deployment.start_training()
    deployment.wait_for_round(2)
    deployment.kill("server")
    # the one that waits for the run says what became of it
    assert deployment.wait_for_end("train") == 5
    assert "no answer" in deployment.say("train")
    done = len(read_records(deployment.run / "records.jsonl"))
    assert 2 <= done < 4

    deployment.start_server()
    deployment.start_training()
    assert deployment.wait_for_end("train") == 0

    again = [e["record"]["round"] for e in deployment.events() if e["event"] == "round"]
    assert again == [1, 2, 3, 4]  # no round was trained twice
    train_locally(tmp_path / "local", images, tiny_clip, 4, 60)
    assert_same(*(run / "checkpoint.safetensors" for run in (tmp_path / "local", deployment.run)))


def test_flowers_simulation_trains_as_the_local_engine(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path
) -> None:
    same = ["--data", str(tiny_images), "--model", str(tiny_clip), "--rounds", "2"]
    same += ["--lr", "0.1", "--batch-size", "8", "--context-length", "4"]
    for engine in ("local", "flower"):
        out = ["--out", str(tmp_path / engine), "--engine", engine]
        command = [*FEDAPT, "train", *same, *out, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert_same(*(tmp_path / e / "checkpoint.safetensors" for e in ("local", "flower")))
    records = read_records(tmp_path / "flower" / "records.jsonl")
    assert [r["replies"] for r in records] == [2, 2]


def test_an_engine_that_is_none(capsys: pytest.CaptureFixture[str], tiny_images: Path) -> None:
    always = ["train", "--data", str(tiny_images), "--out", "never"]
    assert main([*always, "--engine", "spark"]) == 2
    assert "--engine: found 'spark'; expected local or flower" in capsys.readouterr().err
    assert main([*always, "--engine", "flower", "--method", "local"]) == 2
    assert "the method local, whose clients send nothing" in capsys.readouterr().err
    assert not Path("never").exists()


def test_training_without_a_server(tmp_path: Path) -> None:
    address = f"127.0.0.1:{find_port()}"
    write_deployment(tmp_path / "d", Deployed(address, NAMES, {"a": "a"}, "data", Config()))
    server = tmp_path / "d" / "server"
    command = [*FEDAPT, "federation", "train", str(server), "--wait", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 5
    assert f"the server {address}: found no answer" in done.stderr
    assert f"start it: fedapt federation server {server}" in done.stderr
    assert "Traceback" not in done.stderr
    (server / "settings.toml").write_text('[train]\nmethod = "local"\n')
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "the method local, whose clients send nothing" in done.stderr
