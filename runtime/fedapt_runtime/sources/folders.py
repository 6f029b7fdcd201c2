"""Images below a folder and images that match a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from fedapt_runtime.errors import InputError
from fedapt_runtime.foreign import translate
from fedapt_runtime.formats import (
    LOOP,
    SEEN,
    LeftOut,
    PathRule,
    reason_to_skip_file,
    reason_to_skip_folder,
)


def _take_all(path: str) -> bool:
    return True


def walk_folder(
    top: str, left_out: LeftOut, wanted: Callable[[str], bool] = _take_all
) -> Iterator[str]:
    """Yield the images below a folder: its own, sorted by name, then those of its subfolders.

    A link to a folder is followed unless its target is read anyway: a parent of the link (a loop),
    a folder of the same tree, or the target of another link. No folder is read twice, and cycles of
    links end.

    Args:
        left_out: counts omitted files and folders by reason.
        wanted: selects files by path; others are neither yielded nor counted.

    Raises:
        InputError: a folder cannot be read.
    """
    trees = {os.path.realpath(top)}
    left = [(top, os.path.realpath(top))]
    while left:
        folder, real = left.pop()
        with translate(
            InputError,
            where=folder,
            found="a folder that cannot be read",
            expected="a readable folder",
            next_step="check its permissions",
        ):
            names, folders = list_folder(folder)
        for name in names:
            path = os.path.join(folder, name)
            if not wanted(path):
                continue
            if reason := reason_to_skip_file(name):
                left_out.add(reason)
            else:
                yield path
        inside = []
        for name in folders:
            path, place = os.path.join(folder, name), os.path.join(real, name)
            reason = reason_to_skip_folder(name)
            if reason is None and os.path.islink(path):
                place = os.path.realpath(path)
                if _is_below(real, place):
                    reason = LOOP
                elif any(_is_below(place, tree) for tree in trees):
                    reason = SEEN
                else:
                    trees.add(place)
            elif reason is None and place in trees:
                reason = SEEN
            if reason:
                left_out.add(reason)
            else:
                inside.append((path, place))
        left.extend(reversed(inside))


def list_folder(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Names of files and names of folders, both sorted; a link counts as its target.

    Raises:
        OSError: the folder cannot be read.
    """
    names: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:  # a cycle of links counts as a file, whose row reports the error
                is_folder = False
            (folders if is_folder else names).append(entry.name)
    return sorted(names), sorted(folders)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def match_pattern(pattern: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the images that a pattern matches, with `**` for any number of folders.

    Brackets in the name of an existing folder are literal.

    Args:
        left_out: counts omitted files and folders by reason.

    Raises:
        InputError: a folder cannot be read.
    """
    place, parts = _split_pattern(pattern)
    if "**" in parts:
        depth = parts.index("**")
        tail = parts[depth:]
        for head in _glob(place, parts[:depth]) if depth else [place]:
            if os.path.isdir(head or "."):
                start = len(os.path.join(head, ""))
                yield from walk_folder(
                    head or ".",
                    left_out,
                    lambda path, start=start: _matches(path[start:].split(os.sep), tail),  # type: ignore[misc]
                )
        return
    rule, start = PathRule(left_out), len(os.path.join(place, ""))
    for path in _glob(place, parts):
        if rule.takes(path[start:].replace(os.sep, "/")):
            yield path


def _split_pattern(pattern: str) -> tuple[str, list[str]]:
    """The existing folder at the start of a pattern, and the parts after it."""
    parts = pattern.split(os.sep)
    place = ""
    while len(parts) > 1 and os.path.isdir(ahead := os.path.join(place, parts[0] or os.sep)):
        place, parts = ahead, parts[1:]
    return place, parts


def _glob(place: str, parts: Sequence[str]) -> list[str]:
    """Matches of parts without `**`; brackets without a match are literal."""
    rest = os.sep.join(parts)
    for tail in (rest, rest.replace("[", "[[]")):
        if found := glob.glob(os.path.join(glob.escape(place), tail)):
            return sorted(found)
    return []


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return True
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
