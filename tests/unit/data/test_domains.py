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
from fedapt.data.domains import (
    ImageSet,
    ImageTable,
    Labelled,
    divide_table,
    load_domains,
    load_table,
)
from fedapt.data.folders import ImageFolders, Sample, scan_folders
from fedapt.data.splits import Split, split_folders
from fedapt_runtime import Preprocessing


class MeanEncoder:
    """The mean of each channel."""

    preprocessing = Preprocessing((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    fingerprint = "mean"
    width = 3

    def prepare(self) -> None:
        pass

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
    assert a.train.load().features.tolist() == [[1, 2, 3], [7, 8, 9]]
    assert a.train.labels.tolist() == [1, 0]  # mug, bike
    assert a.test.load().features.tolist() == [[4, 5, 6]]
    assert a.test.labels.tolist() == [1]
    assert b.train.load().features.tolist() == [[10, 11, 12]]
    assert b.test.load().features.tolist() == [[13, 14, 15]]
    assert b.test.labels.tolist() == [0]
    assert a.train.load().features.dtype == torch.float32
    assert a.train.labels.dtype == torch.int64
    assert listener.messages == []
    assert listener.steps[-1] == ("image features", 5, 5)


def test_a_broken_image_is_left_out_counted_and_named(root: Path) -> None:
    (root / "a/mug/0.png").write_bytes(b"no image")
    listener = Listener()
    a, b = load_domains(*scan(root), MeanEncoder(), listener)
    assert a.train.load().features.tolist() == [[7, 8, 9]]
    assert a.train.labels.tolist() == [0]
    assert a.test.load().features.tolist() == [[4, 5, 6]]
    assert b.test.load().features.tolist() == [[13, 14, 15]]
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
    assert b.train.load().features.shape == (0, 3)
    assert b.train.labels.dtype == torch.int64
    assert b.test.labels.tolist() == [0]


def test_a_domain_may_have_no_test_images(root: Path) -> None:
    (root / "b_test.txt").write_text("")
    _, b = load_domains(*scan(root), MeanEncoder(), Reporter())
    assert b.test.load().features.shape == (0, 3)
    assert len(b.test) == 0
    assert len(b.train) == 1


def test_a_table_stands_on_the_device_asked_for(root: Path) -> None:
    device = torch.device("meta")
    for domain in load_domains(*scan(root), MeanEncoder(), Reporter(), device):
        for images in (domain.train, domain.test, domain.validation):
            loaded = images.load()
            tensors = (loaded.features, loaded.labels, loaded.rows, images.labels)
            assert {t.device.type for t in tensors} == {"meta"}
            assert len(loaded) == len(images)


# one table, and the rows of each purpose


def test_all_parts_share_one_table_and_no_row(root: Path) -> None:
    a, b = load_domains(*scan(root), MeanEncoder(), Reporter())
    parts = [part for d in (a, b) for part in (d.train, d.test, d.validation)]
    assert all(part.table is a.train.table for part in parts)
    table = a.train.table
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(5))
    assert [path.relative_to(root).as_posix() for path in table.paths] == sorted(IMAGES)
    for part in parts:
        for row, feature in zip(part.rows.tolist(), part.load().features.tolist(), strict=True):
            name = table.paths[row].relative_to(root).as_posix()
            assert tuple(feature) == IMAGES[name][0]


def test_validation_images_are_a_part_of_their_own(root: Path) -> None:
    folders = scan_folders(root)
    known = {s.path: s for d in folders.domains for s in folders.samples[d]}
    split = Split(
        train={"a": (known["a/mug/0.png"],), "b": (known["b/mug/0.png"],)},
        test={"a": (), "b": (known["b/bike/0.png"],)},
        validation={"a": (known["a/bike/0.png"],), "b": ()},
    )
    listener = Listener()
    a, b = load_domains(folders, split, MeanEncoder(), listener)
    assert a.validation.load().features.tolist() == [[7, 8, 9]]
    assert a.validation.labels.tolist() == [0]
    assert (len(a.train), len(a.test), len(b.validation)) == (1, 0, 0)
    assert listener.steps[-1] == ("image features", 4, 4)  # a/mug/1.png is in no part


def test_a_split_keeps_its_order(root: Path) -> None:
    folders, split = scan(root)
    turned = Split({d: s[::-1] for d, s in split.train.items()}, split.test, split.validation)
    a, _ = load_domains(folders, turned, MeanEncoder(), Reporter())
    assert a.train.load().features.tolist() == [[7, 8, 9], [1, 2, 3]]


def test_one_table_serves_many_splits(root: Path) -> None:
    folders, split = scan(root)
    samples = [s for d in folders.domains for s in folders.samples[d]]
    table = load_table(folders, samples, MeanEncoder(), Reporter())
    a, b = divide_table(table, folders, split)
    other = Split(split.test, split.train, split.validation)
    c, d = divide_table(table, folders, other)
    for one, two in ((a, c), (b, d)):
        assert one.train.table is two.train.table is table
        assert one.train.rows.tolist() == two.test.rows.tolist()
        assert one.test.rows.tolist() == two.train.rows.tolist()


def test_a_table_leaves_out_what_cannot_be_read(root: Path) -> None:
    (root / "a/mug/0.png").write_bytes(b"no image")
    folders, split = scan(root)
    samples = [s for d in folders.domains for s in folders.samples[d]]
    listener = Listener()
    table = load_table(folders, [*samples, Sample("a/mug/9.png", 1)], MeanEncoder(), listener)
    assert len(table.paths) == len(table.features) == len(table.labels) == 4
    assert root / "a/mug/0.png" not in table.paths
    assert listener.messages == [
        f"skipped: {root / 'a/mug/0.png'}: not an image of a known format",
        f"skipped: {root / 'a/mug/9.png'}: no such file",
        "2 of 6 images skipped",
    ]
    a, _ = divide_table(table, folders, split)
    assert a.train.load().features.tolist() == [[7, 8, 9]]


TABLE = ImageTable(
    paths=tuple(Path(f"{i}.png") for i in range(6)),
    features=torch.arange(12).float().reshape(6, 2),
    labels=torch.tensor([0, 1, 2, 0, 1, 2]),
)


def test_a_set_takes_its_rows_in_their_order() -> None:
    images = ImageSet(TABLE, torch.tensor([4, 0, 4, 3]))
    assert len(images) == 4
    assert images.labels.tolist() == [1, 0, 1, 0]
    loaded = images.load()
    assert isinstance(loaded, Labelled)
    assert loaded.features.tolist() == [[8, 9], [0, 1], [8, 9], [6, 7]]
    assert loaded.labels.tolist() == [1, 0, 1, 0]
    assert loaded.rows.tolist() == [4, 0, 4, 3]
    assert len(loaded) == 4


def test_a_subset_is_of_places_not_of_rows() -> None:
    images = ImageSet(TABLE, torch.tensor([5, 3, 1]))
    subset = images.subset(torch.tensor([2, 0]))
    assert subset.table is TABLE
    assert subset.rows.tolist() == [1, 5]
    assert subset.load().features.tolist() == [[2, 3], [10, 11]]
    assert subset.subset(torch.tensor([1])).rows.tolist() == [5]
    assert images.rows.tolist() == [5, 3, 1]  # as it was
    with pytest.raises(IndexError, match="out of bounds"):
        images.subset(torch.tensor([3]))


def test_a_subset_of_nothing_is_empty() -> None:
    empty = ImageSet(TABLE, torch.tensor([5, 3])).subset(torch.empty(0, dtype=torch.int64))
    assert len(empty) == len(empty.load()) == 0
    assert empty.load().features.shape == (0, 2)
    assert empty.labels.dtype == torch.int64


def test_what_was_loaded_is_a_copy() -> None:
    loaded = ImageSet(TABLE, torch.tensor([0, 1])).load()
    loaded.features.zero_()
    assert TABLE.features[1].tolist() == [2, 3]
