"""From a folder to labelled images: one way for training, evaluation, nodes and exports."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fedapt.core.config import Config, DataConfig
from fedapt.core.errors import DataError
from fedapt.data.collection import open_collection
from fedapt.model.checkpoint import load_checkpoint

# apart only because one of them is renamed
NAMES = {"mug_a": "cup"}


def touch(root: Path, counts: dict[str, int]) -> Path:
    for folder, n in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(n):
            (root / folder / f"{i}.png").touch()
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touch(tmp_path / "r", {"d/mug a": 10, "d/mug_a": 10, "e/mug a": 10, "e/mug_a": 10})


def test_a_renaming_keeps_classes_apart_everywhere(root: Path) -> None:
    config = DataConfig(root=str(root), class_names=NAMES)
    expected = ("mug a", "cup")
    assert open_collection(config).classes == expected
    assert open_collection(config, root).classes == expected
    assert open_collection(config, root, training=False).classes == expected
    assert open_collection(config, root, domain="e").classes == expected
    with pytest.raises(DataError, match="both read as 'mug a'"):
        open_collection(dataclasses.replace(config, class_names={}))


def test_a_renaming_of_an_absent_folder_is_refused_for_the_runs_own_images_alone(
    root: Path,
) -> None:
    config = DataConfig(root=str(root), class_names={**NAMES, "bike": "bicycle"})
    with pytest.raises(DataError, match="the class 'bike'; expected one of mug a, mug_a"):
        open_collection(config)
    assert open_collection(config, root).classes == ("mug a", "cup")


def test_what_training_needs_is_not_asked_of_other_images(tmp_path: Path) -> None:
    root = touch(tmp_path, {"d/mug": 10, "d/bike": 10, "e/mug": 10})
    config = DataConfig(root=str(root), shots=9)
    with pytest.raises(DataError, match="images of one class only, 'mug'"):
        open_collection(config)
    images = open_collection(config, root, training=False)
    assert {part: len(images.paths(part)) for part in ("train", "test", "validation")} == {
        "train": 24,
        "test": 6,
        "validation": 0,
    }


def test_labels_are_renumbered_and_nothing_else_changes(root: Path) -> None:
    images = open_collection(DataConfig(root=str(root), class_names=NAMES))
    other = images.renumber(("cup", "bike", "mug a"), "the checkpoint")
    assert other.classes == ("cup", "bike", "mug a")
    assert other.folders.class_folders == ("mug_a", "bike", "mug a")
    for part in ("train", "test"):
        assert other.paths(part) == images.paths(part)
        for (_, before), (_, after) in zip(images.samples(part), other.samples(part), strict=True):
            assert after.label == {0: 2, 1: 0}[before.label]
    assert other.folders.counts("d") == [10, 0, 10]
    with pytest.raises(DataError, match="the class 'mug a'; expected classes of the checkpoint: c"):
        images.renumber(("cup", "bike"), "the checkpoint")


def test_one_part_alone(root: Path) -> None:
    images = open_collection(DataConfig(root=str(root), class_names=NAMES))
    only = images.only("test")
    assert only.paths("test") == images.paths("test") != []
    assert only.paths("train") == only.paths("validation") == []


def test_an_export_reads_the_images_under_the_names_of_the_run(root: Path, tiny_run: Path) -> None:
    from fedapt_export.images import open_images

    checkpoint = load_checkpoint(tiny_run / "checkpoint.safetensors")
    config = dataclasses.replace(Config(), data=DataConfig(class_names=NAMES))
    info = dataclasses.replace(checkpoint.info, config=config)
    images = open_images(dataclasses.replace(checkpoint, info=info), root)
    assert images.classes == ("mug a", "cup")
