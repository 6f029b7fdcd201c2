"""The exported signal is the checkpoint's adaptive network, calibrated on held-out images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from fedapt.cli.app import main
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_folders
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.model.image_tower import image_tower
from fedapt_export.describe import describe
from fedapt_runtime import Classifier
from fedapt_runtime.cli import main as runtime_main
from fedapt_runtime.head import read_head
from fedapt_runtime.unknown import read_signal
from tests.support.tiny import write_tiny_images


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> dict[str, Path]:
    """A run on enough images for a threshold, and its model."""
    folder = tmp_path_factory.mktemp("unknown")
    images = write_tiny_images(folder / "data", per_class=30)
    train = [
        "train",
        "--data",
        str(images),
        "--out",
        str(folder / "run"),
        "--model",
        str(tiny_clip),
    ]
    small = ["--rounds", "3", "--lr", "0.1", "--context-length", "4"]
    assert main([*train, *small, "-o", "data.validation_fraction=0.2"]) == 0
    checkpoint = folder / "run" / "checkpoint.safetensors"
    out = folder / "model.onnx"
    assert main(["export", str(checkpoint), "--out", str(out), "--min-agreement", "0"]) == 0
    return {"images": images, "checkpoint": checkpoint, "model": out}


def test_the_block_says_what_it_was_calibrated_on(line: dict[str, Path]) -> None:
    classifier = Classifier.load(line["model"])
    signal = read_signal(classifier.manifest, "here")
    checkpoint = load_checkpoint(line["checkpoint"])
    assert np.array_equal(signal.network, checkpoint.learned["adaptive_network"].numpy())
    config = checkpoint.info.config.data
    folders = scan_folders(line["images"])
    fractions = (config.test_fraction, config.split_seed)
    split = split_folders(folders, *fractions, validation_fraction=config.validation_fraction)
    held_out = [line["images"] / s.path for d in folders.domains for s in split.validation[d]]
    assert len(held_out) == signal.images > 20
    rows = list(classifier.stream(held_out, flag_unknown=True))
    kept = np.mean([not row.unknown for row in rows])
    assert 0.95 <= signal.kept <= 1
    assert kept == pytest.approx(signal.kept, abs=1.01 / len(rows))  # the threshold is one of them


def test_scores_are_those_of_torch(line: dict[str, Path], tiny_clip: Path) -> None:
    classifier = Classifier.load(line["model"])
    paths = sorted(line["images"].glob("*/*/00[0-3].png"))
    checkpoint = load_checkpoint(line["checkpoint"])
    network = checkpoint.learned["adaptive_network"]
    tower = image_tower(load_backbone(str(tiny_clip)))
    folders = scan_folders(line["images"])
    config = checkpoint.info.config.data
    fractions = (config.test_fraction, config.split_seed)
    split = split_folders(folders, *fractions, validation_fraction=config.validation_fraction)

    def features(files: list[Path]) -> torch.Tensor:
        load = classifier.manifest.preprocessing.load
        with torch.inference_mode():
            return tower(torch.from_numpy(np.stack([load(file) for file in files]))).float()

    def parts(f: torch.Tensor) -> torch.Tensor:
        z = f @ network.T
        entropy = torch.distributions.Categorical(logits=z).entropy() / np.log(2)
        unit, routed = normalize(f, dim=-1), z.argmax(1).tolist()
        near = [(x * centres[i]).sum(-1).max() for x, i in zip(unit, routed, strict=True)]
        return torch.stack([entropy, 1 - torch.stack(near)])

    centres = []
    for domain in folders.domains:
        of_class = [
            [line["images"] / s.path for s in split.train[domain] if s.label == label]
            for label in range(3)
        ]
        means = [normalize(features(files), dim=-1).mean(0) for files in of_class]
        centres.append(normalize(torch.stack(means), dim=-1))
    held_out = [line["images"] / s.path for d in folders.domains for s in split.validation[d]]
    usual = parts(features(held_out))
    mean, std = usual.mean(1, keepdim=True), usual.std(1, keepdim=True, correction=0)
    expected = ((parts(features(paths)) - mean) / std).amax(0)
    found = [row.unknown_score for row in classifier.stream(paths, flag_unknown=True)]
    # the manifest keeps the centres in float16
    np.testing.assert_allclose(found, expected.numpy(), atol=0.02)
    assert np.std(found) > 0.1


def test_a_head_alone_carries_it(line: dict[str, Path], tmp_path: Path) -> None:
    head = tmp_path / "head.safetensors"
    command = ["export", str(line["checkpoint"]), "--out", str(head), "--head-only"]
    assert main([*command, "--min-agreement", "0"]) == 0
    assert read_head(head).manifest.unknown == Classifier.load(line["model"]).manifest.unknown


def test_few_images_give_no_signal_and_a_line_that_says_so(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(tiny_run / "checkpoint.safetensors"), "--min-agreement", "0", "--out"]
    assert main([*command, str(tmp_path / "model.onnx")]) == 0
    err = " ".join(capsys.readouterr().err.split())
    told = "images of every known domain and 20 held-out images"
    assert f"no signal for unknown domains: it requires training {told}" in err
    assert Classifier.load(tmp_path / "model.onnx").manifest.unknown is None


def test_images_of_other_domains_do_not_calibrate(
    line: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = write_tiny_images(tmp_path / "data", per_class=30, domains=("neon", "dusk"))
    command = ["export", str(line["checkpoint"]), "--out", str(tmp_path / "model.onnx")]
    assert main([*command, "--min-agreement", "0", "--data", str(others)]) == 0
    assert "no signal for unknown domains: it requires training images" in capsys.readouterr().err


def test_describe_shows_the_figures_and_not_the_tensor(
    line: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert runtime_main(["describe", str(line["model"])]) == 0
    block = json.loads(capsys.readouterr().out)["unknown"]
    assert block["kept"] >= 0.95
    assert {"adaptive_network", "centres"}.isdisjoint(block)
    found = describe(line["model"])["unknown"]
    assert found == block
