"""Secure rounds in Flower's simulation: the result is the mean that everybody could see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedapt.core.config import read_config
from fedapt.core.records import read_records
from fedapt.core.report import Reporter
from fedapt.model.checkpoint import load_checkpoint
from fedapt.run.train import train
from tests.support.federation import FEDAPT
from tests.support.tiny import write_tiny_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

DOMAINS = ("cartoon", "painting", "photo", "sketch")
SETTINGS = ("train.lr=0.1", "train.batch_size=8", "prompt.context_length=4", "train.seed=3")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_images(tmp_path_factory.mktemp("secure") / "data", 6, DOMAINS)


def assert_plain_mean(run: Path, out: Path, images: Path, clip: Path, *settings: str) -> None:
    """The run's checkpoint is that of the local engine, which averages in the clear."""
    options = {"data.root": str(images), "model.name": str(clip)}
    config = read_config(None, [*SETTINGS, *settings], options)
    train(config, out, resume=False, device="cpu", reporter=Reporter())
    expected, found = (load_checkpoint(f / "checkpoint.safetensors") for f in (out, run))
    for name, tensor in expected.learned.items():
        torch.testing.assert_close(found.learned[name], tensor, rtol=0, atol=1e-6)
    last, other = (read_records(f / "records.jsonl")[-1] for f in (out, run))
    assert other["mean_accuracy"] == last["mean_accuracy"]
    assert other["loss"] == pytest.approx(last["loss"], abs=1e-5)


def test_flowers_simulation_adds_up_in_secret(
    tmp_path: Path, images: Path, tiny_clip: Path
) -> None:
    out = tmp_path / "flower"
    command = [*FEDAPT, "train", "--data", str(images), "--model", str(tiny_clip), "--json"]
    command += ["--engine", "flower", "--out", str(out), "--rounds", "3"]
    for setting in (*SETTINGS, "federation.secure=true"):
        command += ["-o", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert [r["replies"] for r in read_records(out / "records.jsonl")] == [4, 4, 4]
    assert_plain_mean(out, tmp_path / "local", images, tiny_clip, "train.rounds=3")
