"""A server and nodes as real processes on loopback, with TLS and node keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedapt.core.config import read_config
from fedapt.core.records import read_records
from fedapt.core.report import Reporter
from fedapt.model.checkpoint import load_checkpoint
from fedapt.run.train import train
from tests.support.federation import Deployment, deploy, processes_of
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
    assert processes_of(folder) == []


def train_locally(out: Path, images: Path, clip: Path, rounds: int, seconds: float) -> bytes:
    """The checkpoint of the local engine with the same settings."""
    options = {"data.root": str(images), "model.name": str(clip), "train.rounds": rounds}
    options["federation.round_seconds"] = float(seconds)
    config = read_config(None, SETTINGS, options)
    train(config, out, resume=False, device="cpu", reporter=Reporter())
    return (out / "checkpoint.safetensors").read_bytes()


@pytest.mark.parametrize("deployment", [(8, 8)], indirect=True)
def test_a_node_dies_and_comes_back(deployment: Deployment) -> None:
    deployment.start_server()
    for name in DOMAINS:
        deployment.start_node(name)
    deployment.start_training()

    deployment.wait_for_round(2)
    deployment.kill("painting")
    deployment.start_node("painting")

    assert deployment.wait_for_end("train") == 0
    records = read_records(deployment.run / "records.jsonl")
    assert [r["round"] for r in records] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert records[1]["replies"] == 4
    assert records[2]["replies"] == 3
    assert records[2]["refused"].keys() == {"painting"}
    assert records[7]["replies"] == 4
    assert records[7]["accuracy"].keys() == set(DOMAINS)
    assert load_checkpoint(deployment.run / "checkpoint.safetensors").info.domains == DOMAINS


@pytest.mark.parametrize("deployment", [(5, 60)], indirect=True)
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
    assert 2 <= done < 5

    deployment.start_server()
    deployment.start_training()
    assert deployment.wait_for_end("train") == 0

    again = [e["record"]["round"] for e in deployment.events() if e["event"] == "round"]
    assert again == [1, 2, 3, 4, 5]  # no round was trained twice
    found = (deployment.run / "checkpoint.safetensors").read_bytes()
    assert found == train_locally(tmp_path / "local", images, tiny_clip, 5, 60)
