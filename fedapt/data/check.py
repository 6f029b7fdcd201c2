"""Check of a folder of images before a training."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedapt.core.report import Reporter
from fedapt.data.folders import ImageFolders, Sample, scan_folders
from fedapt_runtime import Preprocessing
from fedapt_runtime.errors import ImageError
from fedapt_runtime.machine import decode_threads

FEW_IMAGES = 5
_CHECK = Preprocessing(size=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class DataReport:
    """Counts and problems of a folder of images.

    Attributes:
        counts: domain -> class folder -> images.
        unreadable: images that cannot be decoded, with the reason.
        missing: domain/class pairs without an image.
        few: domain/class pairs with fewer than `FEW_IMAGES`.
        stray: files in places where images are not read.
        left_out: numbers of omitted files (hidden files among them) by reason.
    """

    counts: dict[str, dict[str, int]]
    unreadable: tuple[str, ...]
    missing: tuple[str, ...]
    few: tuple[str, ...]
    stray: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def is_sound(self) -> bool:
        """Whether all images are readable and every domain has every class."""
        return not self.unreadable and not self.missing

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return vars(self) | {"is_sound": self.is_sound}


def check_data(root: Path, reporter: Reporter) -> DataReport:
    """Count the images of every class and domain, and decode each of them.

    Raises:
        DataError: the folders are not laid out as domains and classes.
    """
    folders = scan_folders(root)
    counts = {
        domain: dict(zip(folders.class_folders, folders.counts(domain), strict=True))
        for domain in folders.domains
    }
    pairs = [(f"{d}/{c}", n) for d, classes in counts.items() for c, n in classes.items()]
    return DataReport(
        counts=counts,
        unreadable=tuple(_find_unreadable(folders, reporter)),
        missing=tuple(pair for pair, n in pairs if n == 0),
        few=tuple(pair for pair, n in pairs if 0 < n < FEW_IMAGES),
        stray=tuple(_find_stray(folders)),
        left_out=dict(folders.left_out),
    )


def _find_unreadable(folders: ImageFolders, reporter: Reporter) -> list[str]:
    samples = [sample for domain in folders.domains for sample in folders.samples[domain]]

    def decode(sample: Sample) -> str | None:
        try:
            _CHECK.load(folders.root / sample.path, name=sample.path)
        except ImageError as error:
            return f"{sample.path}: {error.found}"
        return None

    unreadable = []
    with ThreadPoolExecutor(decode_threads()) as pool:
        for done, problem in enumerate(pool.map(decode, samples), start=1):
            if problem is not None:
                unreadable.append(problem)
            reporter.progress("decoding", done, len(samples))
    return unreadable


def _find_stray(folders: ImageFolders) -> list[str]:
    known = {s.path for domain in folders.domains for s in folders.samples[domain]}
    stray = []
    for domain in folders.domains:
        for folder, _, names in os.walk(folders.root / domain):
            for name in sorted(names):
                path = Path(folder, name).relative_to(folders.root).as_posix()
                if path not in known and not name.startswith("."):
                    stray.append(path)
    return stray
