"""What a run says of its images: changed since it began, or none to test on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fedapt.cli.evaluate import show_evaluation
from fedapt.core.config import Config, read_config
from fedapt.core.report import Reporter
from fedapt.model.checkpoint import load_checkpoint
from fedapt.run.train import train
from fedapt.training.evaluate import DomainResult, Evaluation
from tests.support.tiny import write_tiny_images

CHANGED = "images or their split have changed since"


class Listener(Reporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def settings(root: Path, clip: Path, **more: object) -> Config:
    fields = {"data.root": str(root), "model.name": str(clip), "train.rounds": 1}
    fields |= {"prompt.context_length": 2, "train.batch_size": 8}
    return read_config(None, [], fields | {k.replace("__", "."): v for k, v in more.items()})


def run(config: Config, out: Path, resume: bool = False) -> tuple[Evaluation, list[str]]:
    listener = Listener()
    return train(config, out, resume=resume, device="cpu", reporter=listener), listener.messages


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tiny_images(tmp_path / "images", per_class=5)


def test_a_resume_says_when_images_have_moved(tmp_path: Path, root: Path, tiny_clip: Path) -> None:
    one = settings(root, tiny_clip)
    more = dataclasses.replace(one, train=dataclasses.replace(one.train, rounds=2))
    run(one, tmp_path / "run")
    _, messages = run(more, tmp_path / "run", resume=True)
    assert [m for m in messages if CHANGED in m] == []
    path = root / "photo" / "stripes" / "000.png"
    path.rename(root / "photo" / "red_square" / "x.png")
    more = dataclasses.replace(one, train=dataclasses.replace(one.train, rounds=3))
    _, messages = run(more, tmp_path / "run", resume=True)
    assert [m for m in messages if CHANGED in m] == [f"{CHANGED} {tmp_path / 'run'} began"]


def test_a_table_trains_what_its_folders_train(tmp_path: Path, root: Path, tiny_clip: Path) -> None:
    paths = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    rows = [f"{path.as_posix()},{path.parts[1]},{path.parts[0]}" for path in paths]
    table = root / "images.csv"
    table.write_text("\n".join(["path,class,domain", *reversed(rows)]) + "\n")
    by_folder, _ = run(settings(root, tiny_clip), tmp_path / "a")
    by_table, _ = run(settings(table, tiny_clip), tmp_path / "b")
    assert by_table.to_dict() == by_folder.to_dict()
    checkpoints = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in "ab"]
    assert checkpoints[0] == checkpoints[1]


def test_the_setting_decides_how_deep_images_are_read(
    tmp_path: Path, root: Path, tiny_clip: Path
) -> None:
    for value in ("scale", "openclip"):
        run(settings(root, tiny_clip, data__preprocess=value), tmp_path / value)
        info = load_checkpoint(tmp_path / value / "checkpoint.safetensors").info
        assert info.preprocessing.depth == value


def test_what_is_left_out_is_told(tmp_path: Path, root: Path, tiny_clip: Path) -> None:
    (root / "photo" / "stripes" / "._000.png").write_bytes(b"x")
    (root / "photo" / "notes.txt").write_bytes(b"x")
    (root / "photo" / "@eaDir").mkdir()
    _, messages = run(settings(root, tiny_clip), tmp_path / "run")
    (told,) = (m for m in messages if m.startswith("left out: "))
    assert "AppleDouble files of macOS, ._* (1)" in told
    assert ".txt files (1)" in told
    assert "__MACOSX and @eaDir (1)" in told


def test_without_test_images_there_is_a_dash_and_a_message(
    tmp_path: Path, root: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(root, tiny_clip, data__test_fraction=0.0)
    evaluation, messages = run(config, tmp_path / "run")
    assert messages[-1] == "no test images, so no accuracy: photo, sketch"
    assert evaluation.to_dict()["mean"] is None
    assert evaluation.to_dict()["domains"]["photo"] == {
        "accuracy": None,
        "zero_shot": None,
        "n": 0,
    }
    show_evaluation(evaluation, "x")
    shown = capsys.readouterr().out
    assert "0.0" not in shown
    cells = [line.split("│")[1:-1] for line in shown.splitlines() if "photo" in line]
    assert [cell.strip() for cell in cells[0]] == ["photo", "-", "-", "0"]


def test_one_domain_without_test_images_leaves_the_mean_of_the_others() -> None:
    results = {"a": DomainResult(0.5, 0.25, 8), "b": DomainResult(0.0, 0.0, 0)}
    fields = Evaluation("FedAPT", results, {}).to_dict()
    assert (fields["mean"], fields["zero_shot_mean"]) == (0.5, 0.25)
    assert fields["domains"]["b"]["accuracy"] is None
