"""The steps from a folder to labelled images: scan, rename, check, split and number.

Training, evaluation, nodes, comparisons, exports and the demo all read a run's images here. They
therefore agree on class names and on the split into training and test images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedapt.core.config import DataConfig
from fedapt.core.errors import DataError
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, ImageTable, divide_table, load_domains, load_table
from fedapt.data.features import ImageEncoder
from fedapt.data.folders import ImageFolders, Sample, check_complete, scan_folders
from fedapt.data.splits import Split, split_as_configured


@dataclass(frozen=True)
class Collection:
    """The images below a root, with the part of each image in a run.

    Attributes:
        folders: all images; a label is an index into `classes`.
        split: samples that train, validate and test.
    """

    folders: ImageFolders
    split: Split

    @property
    def root(self) -> Path:
        """The folder or table of the images."""
        return self.folders.root

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.folders.class_names

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, sorted."""
        return self.folders.domains

    def paths(self, part: str) -> list[Path]:
        """The image files of a part, `train`, `test` or `validation`, domain by domain."""
        return [self.root / sample.path for _, sample in self.samples(part)]

    def samples(self, part: str) -> Iterator[tuple[str, Sample]]:
        """The images of a part with the domain of each."""
        images: Mapping[str, Sequence[Sample]] = getattr(self.split, part)
        return ((domain, sample) for domain in self.domains for sample in images[domain])

    def only(self, part: str) -> Collection:
        """The same collection with the images of one part only."""
        none: dict[str, tuple[Sample, ...]] = dict.fromkeys(self.domains, ())
        parts = dict.fromkeys(("train", "test", "validation"), none)
        parts[part] = dict(getattr(self.split, part))
        return dataclasses.replace(self, split=Split(**parts))

    def split_again(self, config: DataConfig) -> Collection:
        """The same images, split with other settings."""
        return dataclasses.replace(self, split=split_as_configured(self.folders, config))

    def renumber(self, classes: Sequence[str], whose: str) -> Collection:
        """The same images with the labels of other classes, a superset of these.

        Args:
            classes: names in the order of the new labels.
            whose: owner of the classes, for the error.

        Raises:
            DataError: the images have a class that is not among them.
        """
        number = {name: label for label, name in enumerate(classes)}
        if unknown := [name for name in self.classes if name not in number]:
            raise DataError(
                where=self.root,
                found=f"the class {unknown[0]!r}",
                expected=f"classes of {whose}: {', '.join(classes)}",
                next_step="use images of these classes",
            )
        new = [number[name] for name in self.classes]

        def change(part: Mapping[str, tuple[Sample, ...]]) -> dict[str, tuple[Sample, ...]]:
            return {d: tuple(Sample(s.path, new[s.label]) for s in part[d]) for d in part}

        names = dict(zip(self.classes, self.folders.class_folders, strict=True))
        folders = dataclasses.replace(
            self.folders,
            class_folders=tuple(names.get(name, name) for name in classes),
            class_names=tuple(classes),
            samples=change(self.folders.samples),
        )
        parts = (self.split.train, self.split.test, self.split.validation)
        return Collection(folders, Split(*map(change, parts)))

    def load(
        self,
        encoder: ImageEncoder,
        reporter: Reporter,
        device: torch.device | None = None,
        *,
        need_train: bool = True,
    ) -> list[Domain]:
        """The features of every domain's images, see `load_domains`.

        Raises:
            DataError: no training image of a domain can be read, and `need_train`.
            FileError: the cache cannot be written.
        """
        return load_domains(
            self.folders, self.split, encoder, reporter, device, need_train=need_train
        )

    def load_table(
        self, encoder: ImageEncoder, reporter: Reporter, device: torch.device | None = None
    ) -> ImageTable:
        """The features of all images of all parts, see `load_table`.

        Raises:
            FileError: the cache cannot be written.
        """
        samples = [s for domain in self.domains for s in self.folders.samples[domain]]
        return load_table(self.folders, samples, encoder, reporter, device)

    def divide(self, table: ImageTable) -> list[Domain]:
        """The rows of each domain and part in a table of all images.

        Raises:
            DataError: no training image of a domain can be read.
        """
        return divide_table(table, self.folders, self.split)


def open_collection(
    config: DataConfig, root: Path | None = None, *, domain: str = "", training: bool = True
) -> Collection:
    """The images of a run, or other images read with the run's settings.

    Args:
        config: root, class names and split.
        root: folder of other images than the configuration's; renamings of missing folders are
            ignored.
        domain: the only domain to read; empty for all.
        training: require every class in every domain, and the configured number of shots. If
            false, missing ones are allowed.

    Raises:
        DataError: the folders are wrong, or incomplete for training.
    """
    own = Path(config.root) if root is None else root
    folders = scan_folders(own, config.class_names, domain=domain, need_named=root is None)
    if training:
        check_complete(folders, config.allow_missing_classes)
    else:
        config = dataclasses.replace(config, shots=0)
    return Collection(folders, split_as_configured(folders, config))
