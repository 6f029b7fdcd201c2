"""Image features and labels of a folder as one file, to compare methods on another machine.

A comparison reads features, labels and paths, and no pixel, unless a method trains on images
(`full`) or on augmented ones (`fedapt-unsupervised`). A bundle is a safetensors file with
`features` float32 [n, D] and `labels` int64 [n]; its metadata has every path, the classes, and
the CLIP that computed the features.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedapt.core.errors import DataError
from fedapt.core.files import write_bytes
from fedapt.data.domains import ImageTable
from fedapt.data.folders import ImageFolders, Sample
from fedapt.model.backbone import Backbone

SUFFIX = ".safetensors"
_METADATA_KEY = "fedapt_features"


def write_bundle(path: Path, folders: ImageFolders, table: ImageTable, backbone: Backbone) -> None:
    """Write a folder's features, completely or not at all.

    Args:
        table: table of all readable images of `folders`, in their order.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    known = {path.relative_to(folders.root).as_posix() for path in table.paths}
    described = {
        "clip_sha256": backbone.sha256,
        "digest": table.digest,
        "domains": folders.domains,
        "class_folders": folders.class_folders,
        "class_names": folders.class_names,
        "paths": {
            domain: [sample.path for sample in folders.samples[domain] if sample.path in known]
            for domain in folders.domains
        },
    }
    tensors = {"features": table.features.cpu().contiguous(), "labels": table.labels.cpu()}
    write_bytes(path, save(tensors, {_METADATA_KEY: json.dumps(described, sort_keys=True)}))


def read_bundle(path: Path, backbone: Backbone) -> tuple[ImageFolders, ImageTable]:
    """A folder's listing and features, on the backbone's device.

    Raises:
        DataError: it is missing, damaged, or of another CLIP.
    """
    try:
        with safe_open(str(path), framework="pt") as stream:
            fields = json.loads((stream.metadata() or {})[_METADATA_KEY])
            features, labels = stream.get_tensor("features"), stream.get_tensor("labels")
        sha256 = str(fields["clip_sha256"])
        places = [
            (domain, name) for domain in fields["domains"] for name in fields["paths"][domain]
        ]
        listed = zip(places, labels.tolist(), strict=True)
        samples: dict[str, list[Sample]] = {domain: [] for domain in fields["domains"]}
        for (domain, name), label in listed:
            samples[domain].append(Sample(str(name), label))
        folders = ImageFolders(
            path.parent,
            tuple(fields["domains"]),
            tuple(fields["class_folders"]),
            tuple(fields["class_names"]),
            {domain: tuple(found) for domain, found in samples.items()},
        )
        expected = (len(places), backbone.joint_width)
        if tuple(features.shape) != expected or features.dtype != torch.float32:
            raise ValueError(f"features of {features.dtype} {list(features.shape)}")
        digest = str(fields["digest"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            where=path,
            found=f"a file that is not a bundle of features ({type(error).__name__}: {error})",
            expected=f"a folder of domains, or a {SUFFIX} file of their features",
            next_step="check the path, or write the bundle again",
        ) from error
    if sha256 != backbone.sha256:
        raise DataError(
            where=path,
            found=f"features of the CLIP with hash {sha256[:12]}",
            expected=f"{backbone.sha256[:12]}, the CLIP of this comparison",
            next_step="choose the CLIP that computed the features, or write the bundle again",
        )
    paths = tuple(path.parent / name for _, name in places)
    device = backbone.device
    return folders, ImageTable(paths, features.to(device), labels.to(device), digest)
