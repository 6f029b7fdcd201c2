"""The split of images into training and test images.

DomainNet's `<domain>_train.txt` and `<domain>_test.txt` are used if they are in the root.
Otherwise, a hash of seed and path splits each class of each domain. Added images change the
part of few others. The order of a directory listing has no effect.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedapt.core.config import DataConfig
from fedapt.core.errors import DataError
from fedapt.data.folders import ImageFolders, Sample
from fedapt_runtime.text import decode_text


@dataclass(frozen=True)
class Split:
    """Training, validation and test samples of each domain."""

    train: Mapping[str, tuple[Sample, ...]]
    test: Mapping[str, tuple[Sample, ...]]
    validation: Mapping[str, tuple[Sample, ...]]


def split_folders(
    folders: ImageFolders,
    test_fraction: float,
    seed: int,
    *,
    validation_fraction: float = 0.0,
    shots: int = 0,
) -> Split:
    """Split every domain.

    Args:
        test_fraction: share of each class and domain kept for testing, without split files.
        seed: seed of the hash.
        validation_fraction: share of each class among the rest, kept to choose a round.
        shots: training images of each class and domain; 0 for all.

    Raises:
        DataError: a split file is damaged, names an image that is not there or lacks the other, a
            domain is left without training images, or a class has fewer than `shots` of them.
    """
    train, validation, test = {}, {}, {}
    for domain in folders.domains:
        lists = [folders.root / f"{domain}_{part}.txt" for part in ("train", "test")]
        there = [path for path in lists if path.is_file()]
        if len(there) == 1:
            (missing,) = {*lists} - {*there}
            raise DataError(
                where=there[0],
                found=f"no {missing.name} beside it",
                expected="both split files, or none",
                next_step="add the other one, or remove this one to split at random",
            )
        if there:
            train[domain], test[domain] = (_read_list(path, folders, domain) for path in lists)
            _check_disjoint(lists[1], train[domain], test[domain])
        else:
            samples = folders.samples[domain]
            train[domain], test[domain] = split_samples(samples, test_fraction, seed)
        train[domain], validation[domain] = split_samples(train[domain], validation_fraction, seed)
        if shots:
            train[domain] = _take_shots(folders, domain, train[domain], shots, seed)
        if not train[domain]:
            raise DataError(
                where=f"domain {domain}",
                found="no training images",
                expected="at least one",
                next_step="add images, or lower data.test_fraction",
            )
    return Split(train, test, validation)


def split_as_configured(folders: ImageFolders, config: DataConfig) -> Split:
    """The split of a training run, see `split_folders`."""
    return split_folders(
        folders,
        config.test_fraction,
        config.split_seed,
        validation_fraction=config.validation_fraction,
        shots=config.shots,
    )


def split_samples(
    samples: tuple[Sample, ...], test_fraction: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Separate `test_fraction` of each class: (rest, separated), in the given order."""
    kept: set[Sample] = set()
    for ranked in _rank_classes(samples, seed).values():
        kept.update(ranked[: round(test_fraction * len(ranked))])
    return tuple(s for s in samples if s not in kept), tuple(s for s in samples if s in kept)


def _take_shots(
    folders: ImageFolders, domain: str, samples: tuple[Sample, ...], shots: int, seed: int
) -> tuple[Sample, ...]:
    taken: set[Sample] = set()
    by_class = _rank_classes(samples, seed)
    for label in sorted({sample.label for sample in folders.samples[domain]}):
        ranked = by_class.get(label, [])
        if len(ranked) < shots:
            raise DataError(
                where=f"data.shots = {shots}",
                found=f"{len(ranked)} training images in {domain}/{folders.class_folders[label]}",
                expected=f"at least {shots} in every class of every domain",
                next_step="lower data.shots, or add images",
            )
        taken.update(ranked[-shots:])
    return tuple(s for s in samples if s in taken)


def _rank_classes(samples: tuple[Sample, ...], seed: int) -> dict[int, list[Sample]]:
    """The samples of each class in an order that depends on seed and paths only."""
    by_class: dict[int, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    return {
        label: sorted(members, key=lambda s: rank_path(seed, s.path))
        for label, members in by_class.items()
    }


def rank_path(seed: int, path: str) -> bytes:
    """A pseudo-random sort key of a path; it depends on seed and path only."""
    return hashlib.sha256(f"{seed}/{path}".encode("utf-8", "surrogateescape")).digest()


def _read_list(path: Path, folders: ImageFolders, domain: str) -> tuple[Sample, ...]:
    # composed characters (NFC): another system may have written the list with decomposed ones
    known = {_compose(sample.path): sample for sample in folders.samples[domain]}
    try:
        # not splitlines: a name may hold U+2028
        lines = [line.rstrip("\r") for line in decode_text(path.read_bytes()).split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            where=path,
            found=getattr(error, "strerror", None) or str(error),
            expected="a text file in UTF-8 or UTF-16",
            next_step="correct it, or remove both split files to split at random",
        ) from error
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = _compose(
            line.rsplit(maxsplit=1)[0]
        )  # "path label"; the class folder gives the label
        if name not in known:
            raise DataError(
                where=f"{path}, line {number}",
                found=repr(name),
                expected=f"an image below {folders.root / domain}",
                next_step="add the missing images, or remove both split files to split at random",
            )
        samples.append(known[name])
    return tuple(samples)


def _compose(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _check_disjoint(path: Path, train: tuple[Sample, ...], test: tuple[Sample, ...]) -> None:
    if both := set(train) & set(test):
        raise DataError(
            where=path,
            found=f"{min(s.path for s in both)!r}, which is a training image too",
            expected="test images that training never sees",
            next_step="correct the split files",
        )
