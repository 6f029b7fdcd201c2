"""Each domain's image features and labels, ready for training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedapt.core.errors import DataError
from fedapt.core.report import Reporter
from fedapt.data.features import ImageEncoder, extract_features
from fedapt.data.folders import ImageFolders, Sample
from fedapt.data.splits import Split


@dataclass(frozen=True)
class Labelled:
    """Image features f, float32 [n, D], not normalised, and class indices int64 [n]."""

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Labelled:
        """The same on another device."""
        return Labelled(self.features.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Domain:
    """One domain with its training and test images as features."""

    name: str
    train: Labelled
    test: Labelled


def load_domains(
    folders: ImageFolders,
    split: Split,
    encoder: ImageEncoder,
    reporter: Reporter,
    device: torch.device | None = None,
    *,
    need_train: bool = True,
) -> list[Domain]:
    """Compute or look up the features of every domain.

    An image that cannot be read is left out, counted and listed.

    Args:
        need_train: whether a domain without training images is an error.

    Raises:
        DataError: no training image of a domain can be read.
        FileError: the cache cannot be written.
    """
    device = device or torch.device("cpu")
    parts: list[tuple[Sample, ...]] = []
    for domain in folders.domains:
        parts += [split.train[domain], split.test[domain]]
    loaded = _load(folders, parts, encoder, reporter)
    domains = []
    for i, name in enumerate(folders.domains):
        train, test = loaded[2 * i], loaded[2 * i + 1]
        if need_train and not len(train):
            raise DataError(
                where=folders.root / name,
                found="no readable training image",
                expected="at least one",
                next_step="see `fedapt data check` and replace the broken files",
            )
        domains.append(Domain(name, train.to(device), test.to(device)))
    return domains


def _load(
    folders: ImageFolders,
    parts: Sequence[Sequence[Sample]],
    encoder: ImageEncoder,
    reporter: Reporter,
) -> list[Labelled]:
    samples = [sample for part in parts for sample in part]
    features = extract_features(
        [folders.root / sample.path for sample in samples],
        encoder,
        workers=os.cpu_count() or 1,
        progress=lambda done, total: reporter.progress("image features", done, total),
    )
    for error in features.errors:
        reporter.message(f"skipped: {error.where}: {error.found}")
    if features.errors:
        reporter.message(f"{len(features.errors)} of {len(samples)} images skipped")
    row_of = {int(index): row for row, index in enumerate(features.kept)}
    values = torch.from_numpy(features.values)
    loaded, start = [], 0
    for part in parts:
        indices = [i for i in range(start, start + len(part)) if i in row_of]
        start += len(part)
        loaded.append(
            Labelled(
                values[[row_of[i] for i in indices]],
                torch.tensor([samples[i].label for i in indices], dtype=torch.int64),
            )
        )
    return loaded
