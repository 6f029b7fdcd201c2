"""Joining, leaving and new classes against federations that had been so from the start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedapt.cli.app import main
from fedapt.core.config import read_config
from fedapt.core.errors import CheckpointError, DataError
from fedapt.core.report import Reporter
from fedapt.model.checkpoint import Checkpoint, load_checkpoint
from fedapt.run.sums import add_class, count_images, join, leave, subtract
from fedapt.run.train import train

Train = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def train_on(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path, tiny_clip: Path) -> Train:
    """A checkpoint of some of the tiny set's domains and classes."""

    def train_on(
        *domains: str, leave_out: str = "", method: str = "adaptive-analytic"
    ) -> Checkpoint:
        folder = tmp_path_factory.mktemp("sums")
        for domain in domains:
            shutil.copytree(tiny_images / domain, folder / "data" / domain)
            if leave_out:
                shutil.rmtree(folder / "data" / domain / leave_out)
        values = {
            "data.root": str(folder / "data"),
            "model.name": str(tiny_clip),
            "train.method": method,
        }
        config = read_config(None, (), values)
        train(config, folder / "run", resume=False, device="cpu", reporter=Reporter())
        return load_checkpoint(folder / "run" / "checkpoint.safetensors")

    return train_on


@pytest.fixture(scope="module")
def both(train_on: Train) -> Checkpoint:
    return train_on("photo", "sketch")


def assert_same(found: Checkpoint, expected: Checkpoint, atol: float = 0.0) -> None:
    for names in ("domains", "keys", "clients", "classes"):
        assert getattr(found.info, names) == getattr(expected.info, names)
    assert found.learned.keys() == expected.learned.keys()
    for name, tensor in found.learned.items():
        torch.testing.assert_close(tensor, expected.learned[name], rtol=0, atol=atol)


def test_a_domain_joins(train_on: Train, both: Checkpoint) -> None:
    assert_same(join(train_on("photo"), train_on("sketch")), both)


def test_a_domain_leaves_and_nothing_of_it_is_left(train_on: Train, both: Checkpoint) -> None:
    assert_same(leave(both, "photo"), train_on("sketch"))
    assert_same(leave(both, "sketch"), train_on("photo"))


def test_images_leave_a_domain_that_keeps_others(train_on: Train, both: Checkpoint) -> None:
    total = train_on("photo", "sketch")
    part = leave(total, "sketch")
    # a party of its own that held a quarter of the domain's images, by linearity of sums
    quarter = Checkpoint(part.info, {name: t / 4 for name, t in part.learned.items()})
    found = subtract(total, quarter)
    assert count_images(total) == {"photo": 24, "sketch": 24}
    assert count_images(found) == {"photo": 18, "sketch": 24}
    for name, tensor in found.learned.items():
        torch.testing.assert_close(tensor[0], both.learned[name][0] * 0.75, rtol=1e-6, atol=1e-7)
        assert torch.equal(tensor[1], both.learned[name][1])


def test_more_images_than_there_are_cannot_leave(train_on: Train, both: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"domain photo .*found 24 images; expected fewer th"):
        subtract(both, train_on("photo"))
    with pytest.raises(CheckpointError, match=r"domain sketch .*expected fewer than the fe"):
        subtract(train_on("photo"), train_on("sketch"))
    with pytest.raises(CheckpointError, match="that is subtracted: found classes blue disc, red s"):
        subtract(both, train_on("sketch", leave_out="stripes"))


def test_the_commands(
    train_on: Train, both: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("both", "photo", "sketch")}
    both.save(Path(files["both"]))
    for name in ("photo", "sketch"):
        train_on(name).save(Path(files[name]))
    out = tmp_path / "out.safetensors"
    capsys.readouterr()

    def sums(*arguments: str) -> Checkpoint:
        assert main(["sums", *arguments, "--out", str(out)]) == 0
        return load_checkpoint(out)

    assert_same(sums("join", files["photo"], files["sketch"]), both)
    assert "training images" in capsys.readouterr().out
    assert_same(sums("leave", files["both"], "photo", "--json"), train_on("sketch"))
    assert json.loads(capsys.readouterr().out)["images"] == {"sketch": 24}
    assert sums("add-class", files["both"], "star").info.classes[-1] == "star"
    before = out.read_bytes()
    assert main(["sums", "subtract", files["both"], files["photo"], "--out", str(out)]) == 4
    assert "remove the whole domain, or check the images" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_class_is_added_without_an_image(train_on: Train, tmp_path: Path) -> None:
    fewer = train_on("photo", leave_out="stripes")
    found = add_class(fewer, "stripes")
    assert found.info.classes == ("blue disc", "red square", "stripes")
    # by hand: every image's target for the new class is -1
    gram, targets = found.learned["gram"], found.learned["targets"]
    assert torch.equal(gram, fewer.learned["gram"])
    assert torch.equal(targets[..., :2], fewer.learned["targets"])
    # the constant's row of B is 0.3 times the sum of targets: 16 training images, none of it
    assert float(targets[0, -1, 2]) * 1024 == pytest.approx(-0.3 * 16, rel=1e-5)
    # and a domain that has such images joins
    joined = join(found, train_on("sketch"))
    path = tmp_path / "joined.safetensors"
    joined.save(path)
    assert_same(load_checkpoint(path), joined)


def test_what_does_not_fit_is_refused(train_on: Train, both: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="domains in both: photo"):
        join(both, train_on("photo"))
    with pytest.raises(CheckpointError, match="found classes blue disc, red square; expected cl"):
        join(train_on("photo"), train_on("sketch", leave_out="stripes"))
    with pytest.raises(DataError, match="domain neon: found domains photo, sketch"):
        leave(both, "neon")
    with pytest.raises(DataError, match="expected one of several domains"):
        leave(train_on("photo"), "photo")
    with pytest.raises(DataError, match="an existing class"):
        add_class(both, "stripes")
    pooled = train_on("photo", "sketch", method="analytic")
    for change in (lambda c: leave(c, "photo"), lambda c: add_class(c, "x"), lambda c: join(c, c)):
        with pytest.raises(CheckpointError, match="found the method analytic; expected adaptive"):
            change(pooled)
