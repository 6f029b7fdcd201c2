"""Domains as features and labels, broken images left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fedapt.core.errors import DataError
from fedapt.core.report import Reporter
from fedapt.data.domains import Labelled, load_domains
from fedapt.data.folders import ImageFolders, scan_folders
from fedapt.data.splits import Split, split_folders
from fedapt_runtime import Preprocessing


class MeanEncoder:
    """The mean of each channel."""

    preprocessing = Preprocessing((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    fingerprint = "mean"
    width = 3

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return images.mean((1, 2)).astype(np.float32)


class Listener(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        self.steps.append((task, done, total))


# path -> (its feature, which part of the split it is in)
IMAGES = {
    "a/mug/0.png": ((1, 2, 3), "train"),
    "a/mug/1.png": ((4, 5, 6), "test"),
    "a/bike/0.png": ((7, 8, 9), "train"),
    "b/mug/0.png": ((10, 11, 12), "train"),
    "b/bike/0.png": ((13, 14, 15), "test"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, (colour, _) in IMAGES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    for domain in ("a", "b"):
        for part in ("train", "test"):
            names = [n for n, (_, p) in IMAGES.items() if n.startswith(domain) and p == part]
            (tmp_path / f"{domain}_{part}.txt").write_text("".join(f"{n} 0\n" for n in names))
    return tmp_path


def scan(root: Path) -> tuple[ImageFolders, Split]:
    folders = scan_folders(root)
    return folders, split_folders(folders, 0.2, seed=0)


def test_every_domain_has_its_features_and_labels(root: Path) -> None:
    listener = Listener()
    a, b = load_domains(*scan(root), MeanEncoder(), listener)
    assert (a.name, b.name) == ("a", "b")
    assert a.train.features.tolist() == [[1, 2, 3], [7, 8, 9]]
    assert a.train.labels.tolist() == [1, 0]  # mug, bike
    assert a.test.features.tolist() == [[4, 5, 6]]
    assert a.test.labels.tolist() == [1]
    assert b.train.features.tolist() == [[10, 11, 12]]
    assert b.test.features.tolist() == [[13, 14, 15]]
    assert b.test.labels.tolist() == [0]
    assert a.train.features.dtype == torch.float32
    assert a.train.labels.dtype == torch.int64
    assert listener.messages == []
    assert listener.steps[-1] == ("image features", 5, 5)


def test_a_broken_image_is_left_out_counted_and_named(root: Path) -> None:
    (root / "a/mug/0.png").write_bytes(b"no image")
    listener = Listener()
    a, b = load_domains(*scan(root), MeanEncoder(), listener)
    assert a.train.features.tolist() == [[7, 8, 9]]
    assert a.train.labels.tolist() == [0]
    assert a.test.features.tolist() == [[4, 5, 6]]
    assert b.test.features.tolist() == [[13, 14, 15]]
    assert listener.messages == [
        f"skipped: {root / 'a/mug/0.png'}: not an image of a known format",
        "1 of 5 images skipped",
    ]


def test_a_domain_without_a_readable_training_image_is_refused(root: Path) -> None:
    (root / "b/mug/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="b: found no readable training image; expected at least"):
        load_domains(*scan(root), MeanEncoder(), Reporter())


def test_an_evaluation_needs_no_training_image(root: Path) -> None:
    (root / "b/mug/0.png").write_bytes(b"no image")
    _, b = load_domains(*scan(root), MeanEncoder(), Reporter(), need_train=False)
    assert len(b.train) == 0
    assert b.train.features.shape == (0, 3)
    assert b.train.labels.dtype == torch.int64
    assert b.test.labels.tolist() == [0]


def test_a_domain_may_have_no_test_images(root: Path) -> None:
    (root / "b_test.txt").write_text("")
    _, b = load_domains(*scan(root), MeanEncoder(), Reporter())
    assert b.test.features.shape == (0, 3)
    assert len(b.test) == 0
    assert len(b.train) == 1


def test_labelled_moves_to_a_device() -> None:
    moved = Labelled(torch.zeros(2, 3), torch.tensor([0, 1])).to(torch.device("meta"))
    assert moved.features.device.type == moved.labels.device.type == "meta"
    assert len(moved) == 2
