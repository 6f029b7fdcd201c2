"""A bundle stands for its folder: the same features, labels, paths, and so the same splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedapt.comparison.bundle import read_bundle, write_bundle
from fedapt.core.errors import DataError
from fedapt.core.report import Reporter
from fedapt.data.domains import ImageTable, load_table
from fedapt.data.folders import ImageFolders, scan_folders
from fedapt.data.splits import split_folders
from fedapt.model.backbone import Backbone
from fedapt.onnx.image_encoder import image_encoder


@pytest.fixture(scope="module")
def opened(tiny_images: Path, tiny_backbone: Backbone) -> tuple[ImageFolders, ImageTable]:
    folders = scan_folders(tiny_images, {"blue_disc": "a blue disc"})
    samples = [s for domain in folders.domains for s in folders.samples[domain]]
    return folders, load_table(folders, samples, image_encoder(tiny_backbone), Reporter())


@pytest.fixture
def bundle(
    tmp_path: Path, opened: tuple[ImageFolders, ImageTable], tiny_backbone: Backbone
) -> Path:
    path = tmp_path / "tiny.safetensors"
    write_bundle(path, *opened, tiny_backbone)
    return path


def test_what_was_written_is_read(
    bundle: Path, opened: tuple[ImageFolders, ImageTable], tiny_backbone: Backbone
) -> None:
    folders, table = opened
    found, features = read_bundle(bundle, tiny_backbone)
    assert torch.equal(features.features, table.features)
    assert torch.equal(features.labels, table.labels)
    assert features.digest == table.digest
    assert (found.domains, found.class_names) == (folders.domains, folders.class_names)
    assert "a blue disc" in found.class_names
    assert found.samples == folders.samples
    expected = split_folders(folders, 0.2, 3, validation_fraction=0.2)
    split = split_folders(found, 0.2, 3, validation_fraction=0.2)
    assert split == expected
    # rows are found by path
    relative = [p.relative_to(bundle.parent).as_posix() for p in features.paths]
    assert relative == [p.relative_to(folders.root).as_posix() for p in table.paths]


def test_an_unreadable_image_is_left_out(
    tmp_path: Path, opened: tuple[ImageFolders, ImageTable], tiny_backbone: Backbone
) -> None:
    folders, table = opened
    fewer = ImageTable(table.paths[1:], table.features[1:], table.labels[1:], table.digest)
    path = tmp_path / "fewer.safetensors"
    write_bundle(path, folders, fewer, tiny_backbone)
    found, features = read_bundle(path, tiny_backbone)
    assert len(features.labels) == len(table.labels) - 1
    first = folders.domains[0]
    assert found.samples[first] == folders.samples[first][1:]


def test_features_of_another_clip_are_refused(bundle: Path, tiny_backbone: Backbone) -> None:
    tensors = load_file(bundle)
    header = json.loads(
        bundle.read_bytes()[8 : 8 + int.from_bytes(bundle.read_bytes()[:8], "little")]
    )
    fields = json.loads(header["__metadata__"]["fedapt_features"])
    fields["clip_sha256"] = "0" * 64
    save_file(tensors, bundle, {"fedapt_features": json.dumps(fields)})
    with pytest.raises(DataError, match="found features of the CLIP with hash 000000000000"):
        read_bundle(bundle, tiny_backbone)


@pytest.mark.parametrize("damage", ["missing", "text", "no metadata", "fewer rows", "other width"])
def test_what_is_no_bundle_is_refused(damage: str, bundle: Path, tiny_backbone: Backbone) -> None:
    tensors = load_file(bundle)
    data = bundle.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header["__metadata__"]
    if damage == "missing":
        bundle.unlink()
    elif damage == "text":
        bundle.write_text("no bundle")
    elif damage == "no metadata":
        save_file(tensors, bundle)
    elif damage == "fewer rows":
        save_file({n: t[:-1].clone() for n, t in tensors.items()}, bundle, metadata)
    else:
        narrow = {"features": tensors["features"][:, :-1].clone(), "labels": tensors["labels"]}
        save_file(narrow, bundle, metadata)
    with pytest.raises(DataError, match="found a file that is not a bundle of features"):
        read_bundle(bundle, tiny_backbone)
