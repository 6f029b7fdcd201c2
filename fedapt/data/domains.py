"""Image features and labels: one table for all images, and row numbers for each purpose.

The table is memory-mapped from the feature cache (`fedapt.data.features`) and shared by all
methods, seeds and clients. A domain, a client or a split holds row numbers only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedapt.core.errors import DataError
from fedapt.core.report import Reporter
from fedapt.data.features import ImageEncoder, extract_features
from fedapt.data.folders import ImageFolders, Sample
from fedapt.data.splits import Split
from fedapt_runtime.formats import describe_left_out
from fedapt_runtime.machine import decode_threads


@dataclass(frozen=True)
class ImageTable:
    """All readable images: file, feature and class of each.

    Attributes:
        paths: paths of the images.
        features: f, float32 [n, D], not normalised.
        labels: class indices, int64 [n].
        digest: hash of the image files; empty without files.
    """

    paths: tuple[Path, ...]
    features: Tensor
    labels: Tensor
    digest: str = ""


@dataclass(frozen=True)
class Labelled:
    """Images in memory, such as a batch: features, labels, and their rows in the table.

    Attributes:
        features: f, float32 [n, D], not normalised.
        labels: class indices, int64 [n].
        rows: int64 [n].
    """

    features: Tensor
    labels: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageSet:
    """Rows of the table; `load` copies them."""

    table: ImageTable
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 [n]."""
        return self.table.labels[self.rows]

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at these places, int64, in the set."""
        return ImageSet(self.table, self.rows[indices])

    def load(self) -> Labelled:
        """All images of the set."""
        return Labelled(self.table.features[self.rows], self.labels, self.rows)


@dataclass(frozen=True)
class Domain:
    """One domain with the images of each purpose."""

    name: str
    train: ImageSet
    test: ImageSet
    validation: ImageSet


def load_table(
    folders: ImageFolders,
    samples: Sequence[Sample],
    encoder: ImageEncoder,
    reporter: Reporter,
    device: torch.device | None = None,
) -> ImageTable:
    """Compute or look up features.

    Images that cannot be read are left out, counted and listed.

    Raises:
        FileError: the cache cannot be written.
    """
    if folders.left_out:
        reporter.message(f"left out: {describe_left_out(folders.left_out)}")
    paths = [folders.root / sample.path for sample in samples]
    features = extract_features(paths, encoder, workers=decode_threads(), reporter=reporter)
    for error in features.errors:
        reporter.message(f"skipped: {error.where}: {error.found}")
    if features.errors:
        reporter.message(f"{len(features.errors)} of {len(samples)} images skipped")
    kept = features.kept.tolist()
    device = device or torch.device("cpu")
    return ImageTable(
        tuple(paths[i] for i in kept),
        torch.from_numpy(features.values).to(device),
        torch.tensor([samples[i].label for i in kept], dtype=torch.int64, device=device),
        features.digest,
    )


def load_domains(
    folders: ImageFolders,
    split: Split,
    encoder: ImageEncoder,
    reporter: Reporter,
    device: torch.device | None = None,
    *,
    need_train: bool = True,
) -> list[Domain]:
    """The features of every domain's images.

    Args:
        need_train: whether a domain without training images is an error.

    Raises:
        DataError: no training image of a domain can be read.
        FileError: the cache cannot be written.
    """
    used = {
        s for part in (split.train, split.validation, split.test) for d in part for s in part[d]
    }
    samples = [s for domain in folders.domains for s in folders.samples[domain] if s in used]
    table = load_table(folders, samples, encoder, reporter, device)
    return divide_table(table, folders, split, need_train=need_train)


def digest_images(domains: Sequence[Domain]) -> str:
    """SHA-256 of a run's input: the images' bytes, their classes, and the part of each."""
    digest = hashlib.sha256(domains[0].train.table.digest.encode())
    for domain in domains:
        for part in (domain.train, domain.test, domain.validation):
            digest.update(f"{domain.name} {len(part)}".encode())
            digest.update(torch.stack([part.rows, part.labels]).cpu().numpy().tobytes())
    return digest.hexdigest()


def divide_table(
    table: ImageTable, folders: ImageFolders, split: Split, *, need_train: bool = True
) -> list[Domain]:
    """The rows of a split, by domain; unreadable images are left out.

    Raises:
        DataError: no training image of a domain can be read, and `need_train`.
    """
    row_of = {path: row for row, path in enumerate(table.paths)}

    def rows(part: Mapping[str, tuple[Sample, ...]], domain: str) -> ImageSet:
        paths = (folders.root / sample.path for sample in part[domain])
        found = [row_of[path] for path in paths if path in row_of]
        return ImageSet(table, torch.tensor(found, dtype=torch.int64, device=table.labels.device))

    domains = [
        Domain(name, rows(split.train, name), rows(split.test, name), rows(split.validation, name))
        for name in folders.domains
    ]
    for domain in domains:
        if need_train and not len(domain.train):
            raise DataError(
                where=folders.root / domain.name,
                found="no readable training image",
                expected="at least one",
                next_step="run `fedapt data check` and replace the unreadable files",
            )
    return domains
