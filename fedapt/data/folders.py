"""Labelled images of several domains: `root/<domain>/<class>/*.jpg`, or the rows of a table.

DomainNet, PACS, Office-Caltech10 and DomainBed have this layout.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedapt.core.errors import DataError
from fedapt.data.class_names import check_class_names, class_name
from fedapt.data.tables import is_table, read_table
from fedapt_runtime.formats import LeftOut, reason_to_skip_file, reason_to_skip_folder
from fedapt_runtime.sources.folders import list_folder

OUTSIDE, DEEPER = "images outside of a class folder", "folders inside a class folder"
_LAYOUT = "ROOT/<domain>/<class>/<images>"


@dataclass(frozen=True)
class Sample:
    """One labelled image: its path relative to the root, with `/`, and the index of its class."""

    path: str
    label: int


@dataclass(frozen=True)
class ImageFolders:
    """All images below a root.

    Attributes:
        root: the folder.
        domains: names of the domains, sorted.
        class_folders: names of the class folders, sorted; a label is an index into them.
        class_names: name of each class in the prompt.
        samples: the images of each domain, sorted by path.
        left_out: number of ignored files and folders, by reason.
    """

    root: Path
    domains: tuple[str, ...]
    class_folders: tuple[str, ...]
    class_names: tuple[str, ...]
    samples: Mapping[str, tuple[Sample, ...]]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def counts(self, domain: str) -> list[int]:
        """Images of each class in one domain."""
        counts = [0] * len(self.class_folders)
        for sample in self.samples[domain]:
            counts[sample.label] += 1
        return counts


def scan_folders(
    root: Path,
    class_names: Mapping[str, str] | None = None,
    *,
    domain: str = "",
    need_named: bool = True,
) -> ImageFolders:
    """List the images below `root`, or of a table; opens none of them.

    Args:
        root: a folder of domains, or a CSV or Parquet table (`tables`).
        class_names: folder name -> name in the prompt; others have `_` and `-` read as spaces.
        domain: the only domain to read; empty for all.
        need_named: whether every folder of `class_names` must exist.

    Raises:
        DataError: no such folder, no domains, a root that is one domain, a domain without images,
            two classes of one name, or a class name for a folder that does not exist, and
            `need_named`.
    """
    left_out = LeftOut()
    if is_table(root):
        listed, root = read_table(root), root.parent
    else:
        listed = _list_folders(root, domain, left_out)
    if domain:
        listed = {name: listed[name] for name in listed if name == domain}
        if not listed:
            raise _no_domain(root / domain)
    domains = tuple(sorted(listed))
    classes = tuple(sorted({name for found in listed.values() for name in found}))
    _check_encoding(root, (*domains, *classes))
    renamed = {unicodedata.normalize("NFC", k): name for k, name in (class_names or {}).items()}
    composed = {name: unicodedata.normalize("NFC", name) for name in classes}
    if need_named and (unknown := sorted(set(renamed) - set(composed.values()))):
        raise DataError(
            where="data.class_names",
            found=f"the class {unknown[0]!r}",
            expected=f"one of {', '.join(classes)}",
            next_step="correct the folder name in the configuration",
        )
    index = {name: label for label, name in enumerate(classes)}
    samples = {}
    for name in domains:
        samples[name] = tuple(
            Sample(image, index[of_class])
            for of_class, images in sorted(listed[name].items())
            for image in sorted(images)
        )
        if not samples[name]:
            raise DataError(
                where=root / name,
                found="a domain without images",
                expected=f"images in {_LAYOUT}",
                next_step="add images or remove the folder",
            )
    names = tuple(renamed.get(composed[c], class_name(c)) for c in classes)
    check_class_names(root, list(classes), list(names))
    return ImageFolders(root, domains, classes, names, samples, +left_out)


def _list_folders(root: Path, domain: str, left_out: LeftOut) -> dict[str, dict[str, list[str]]]:
    """Images below a root: domain -> class -> paths, relative to it."""
    domains = _list(root, LeftOut())[
        1
    ]  # ignore files beside the domains, such as lists and licences
    if not domains:
        raise DataError(
            where=root,
            found="no folders",
            expected=_LAYOUT,
            next_step="name the folder that holds the domains",
        )
    found: dict[str, dict[str, list[str]]] = {}
    for name in domains:
        if domain not in ("", name):
            continue
        images, classes = _list(root / name, left_out)
        left_out[OUTSIDE] += len(images)
        found[name] = {
            c: [f"{name}/{c}/{image}" for image in _images(root / name / c, left_out)]
            for c in classes
        }
    if left_out[OUTSIDE] and not any(found.values()):
        raise DataError(
            where=root,
            found=f"images in its folders, such as {next(iter(found))}, and no further folders",
            expected=f"{_LAYOUT}; this folder looks like one domain",
            next_step=f"pass its parent, {root.absolute().parent}",
        )
    return found


def _no_domain(path: Path) -> DataError:
    return DataError(
        where=path,
        found="no such folder",
        expected=_LAYOUT,
        next_step="check the folder of the images and the name of the domain",
    )


def check_complete(folders: ImageFolders, allow_missing_classes: bool) -> None:
    """Refuse a domain that lacks a class (unless allowed), or has only one class.

    Raises:
        DataError: some class has no image in some domain, or a domain has images of one class.
    """
    for domain in folders.domains:
        present = [
            name for name, n in zip(folders.class_folders, folders.counts(domain), strict=True) if n
        ]
        if len(present) < 2:
            raise DataError(
                where=folders.root / domain,
                found=f"images of one class only, {present[0]!r}",
                expected="two classes or more in every domain",
                next_step="add images of the other classes, or remove the domain",
            )
    missing = [
        f"{domain}/{name}"
        for domain in folders.domains
        for name, count in zip(folders.class_folders, folders.counts(domain), strict=True)
        if count == 0
    ]
    if missing and not allow_missing_classes:
        shown = ", ".join(missing[:5]) + (" and others" if len(missing) > 5 else "")
        raise DataError(
            where=folders.root,
            found=f"no images in {shown}",
            expected="images of every class in every domain",
            next_step="add images, or allow it with `data.allow_missing_classes = true`",
        )


def _list(folder: Path, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Names of images and of folders to enter, sorted."""
    try:
        names, folders = list_folder(folder)
    except OSError as error:
        raise DataError(
            where=folder,
            found=(error.strerror or str(error)).lower(),
            expected="a readable folder",
            next_step="check the path and its permissions",
        ) from error
    skipped = {n: reason for n in names if (reason := reason_to_skip_file(n))}
    closed = {n: reason for n in folders if (reason := reason_to_skip_folder(n))}
    for reason in (*skipped.values(), *closed.values()):
        left_out.add(reason)
    return [n for n in names if n not in skipped], [n for n in folders if n not in closed]


def _images(folder: Path, left_out: LeftOut) -> list[str]:
    images, deeper = _list(folder, left_out)
    left_out[DEEPER] += len(deeper)
    return images


def _check_encoding(root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                where=root,
                found=f"the folder name {name!r}",
                expected="names of domains and classes in UTF-8",
                next_step="rename the folder",
            ) from error
