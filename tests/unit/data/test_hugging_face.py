"""Splits of Hugging Face `datasets`, built here; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedapt.core.errors import DataError, UsageError
from fedapt.data.folders import scan_folders
from fedapt.data.hugging_face import is_split, write_table
from fedapt.run.settings import find_images

datasets = pytest.importorskip("datasets", reason="datasets is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def paint(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (number, 2 * number, 100))


def build(images: list[Any], **columns: Any) -> Any:
    split = datasets.Dataset.from_dict({"picture": images, **columns})
    return split.cast_column("picture", datasets.Image())


def test_a_split_becomes_a_table_of_files(cache: Path) -> None:
    split = build(
        [paint(i) for i in range(4)],
        label=[1, 0, 1, 0],
        domain=["photo", "photo", "sketch", "sketch"],
    ).cast_column("label", datasets.ClassLabel(names=["mug", "lamp"]))
    assert is_split(split)
    table = write_table(split)
    folders = scan_folders(table)
    assert (folders.domains, folders.class_names) == (("photo", "sketch"), ("lamp", "mug"))
    colours = {
        (domain, folders.class_names[sample.label]): np.asarray(Image.open(sample.path))[0, 0, 0]
        for domain, samples in folders.samples.items()
        for sample in samples
    }
    assert colours == {
        ("photo", "lamp"): 0,
        ("photo", "mug"): 1,
        ("sketch", "lamp"): 2,
        ("sketch", "mug"): 3,
    }
    assert table.is_relative_to(cache)
    assert write_table(split) == table == find_images(split)
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 5


def test_images_in_files_stay_there(tmp_path: Path, cache: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        paint(i).save(path)
    split = build([str(path) for path in paths], **{"class": ["a", "b"], "domain": ["x", "x"]})
    samples = scan_folders(write_table(split)).samples["x"]
    assert [sample.path for sample in samples] == [str(path) for path in paths]
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 1


def test_what_is_no_split_with_these_columns_is_refused() -> None:
    split = build([paint(0)], label=["a"])
    with pytest.raises(DataError, match="data: found the columns picture, label; expected"):
        write_table(split)
    with pytest.raises(DataError, match="found the columns label, domain"):
        write_table(datasets.Dataset.from_dict({"label": ["a"], "domain": ["b"]}))
    several = datasets.DatasetDict({"train": split})
    with pytest.raises(DataError, match=r"found a DatasetDict; .*name one split, such as dataset"):
        write_table(several)
    with pytest.raises(UsageError, match="data: found a list; expected a folder of domains"):
        find_images([split])
