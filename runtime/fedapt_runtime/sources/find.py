"""Images of each path, one by one."""

from __future__ import annotations

import glob
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator

from fedapt_runtime.errors import ImageError, InputError
from fedapt_runtime.formats import FORMATS, SUFFIXES, LeftOut, PathRule, describe_left_out
from fedapt_runtime.remote import find_remote, is_uri, to_local, to_uri
from fedapt_runtime.sources.archives import ZIP_SUFFIXES, Member, ZipIndex, failing
from fedapt_runtime.sources.folders import match_pattern, walk_folder
from fedapt_runtime.sources.lists import (
    LIST_SUFFIXES,
    TABLE_SUFFIXES,
    read_list,
    read_stdin,
    read_table,
    refuse,
)
from fedapt_runtime.sources.tar import TAR_SUFFIXES, TarFinder, read_tar

STDIN = "-"
_INSIDE = "::"  # separates an archive from the name of an image in it
_MAX_OPEN_ARCHIVES = 8
_IMAGES = "files that end in " + ", ".join(s for s, kind in SUFFIXES.items() if kind in FORMATS)
_PATHS = "paths of images"

Found = str | Member


def find_images(
    paths: Iterable[str | os.PathLike[str]], left_out: LeftOut | None = None
) -> Iterator[Found]:
    """Yield the images of these paths.

    | path | images |
    |---|---|
    | a file | the file |
    | a folder | every image file below it, sorted |
    | an archive | every image file in it, in its order |
    | `archive::name` | one image in the archive |
    | .txt, .lst, or `-` for standard input | the paths on its lines |
    | .parquet, .jsonl, .csv | the paths in its column `path` |
    | a URI | the file, or every image file below it, sorted |
    | a pattern with `*` | the image files that it matches, sorted |

    `formats` defines image files by their suffixes. The files are not opened here: a file without
    an image gets a row with an error.

    Args:
        left_out: counts omitted files and folders by reason.

    Raises:
        InputError: a path does not exist, or a folder, archive, pattern, list or table contains no
            image.
        MissingDependency: Parquet or a URI without pyarrow.
    """
    left_out = LeftOut() if left_out is None else left_out
    for given in paths:
        path = os.fspath(given)
        kind, find = _choose(path)
        if find is None:
            yield path
            continue
        expected = _PATHS if kind in ("a list", "a table") else _IMAGES
        before, empty = Counter(left_out), True
        for item in find(left_out):
            empty = False
            yield item
        if empty:
            raise _nothing(path, kind, expected, Counter(left_out) - before)


def count_images(paths: Iterable[str | os.PathLike[str]]) -> int | None:
    """Number of images of these paths; None if counting would read standard input, a tar or a URI.

    Raises:
        InputError: see `find_images`.
        MissingDependency: Parquet without pyarrow.
    """
    total: int | None = 0
    for given in paths:
        path = os.fspath(given)
        is_stream = path == STDIN or path.lower().endswith(TAR_SUFFIXES)
        if is_uri(path) or (is_stream and (path == STDIN or os.path.isfile(path))):
            total = None
            continue
        count = sum(1 for _ in find_images([path]))
        total = None if total is None else total + count
    return total


def _choose(path: str) -> tuple[str, Callable[[LeftOut], Iterator[Found]] | None]:
    """The kind of a path, for messages, and the function that finds its images; None for a file."""
    small = path.lower()
    if path == STDIN:
        return "a list", lambda left_out: _open_members(read_stdin())
    if is_uri(path):
        return "a folder", lambda left_out: _find_uri(path, left_out)
    if os.path.isdir(path):
        return "a folder", lambda left_out: walk_folder(path, left_out)
    if not os.path.lexists(path):
        if _split_member(path):
            return "an image", lambda left_out: _open_members([path])
        if not glob.has_magic(path):
            raise refuse(path, "no such file or folder")
        return "a pattern", lambda left_out: match_pattern(path, left_out)
    if small.endswith(LIST_SUFFIXES):
        return "a list", lambda left_out: _open_members(read_list(path))
    if small.endswith(TABLE_SUFFIXES):
        return "a table", lambda left_out: _open_members(read_table(path, left_out))
    if small.endswith(ZIP_SUFFIXES):
        return "an archive", lambda left_out: ZipIndex(path).members(left_out)
    if small.endswith(TAR_SUFFIXES):
        return "an archive", lambda left_out: read_tar(path, left_out)
    return "an image", None


def _find_uri(uri: str, left_out: LeftOut) -> Iterator[str]:
    if (local := to_local(uri)) is not None:
        if not os.path.isdir(local):
            if not os.path.lexists(local):
                raise refuse(uri, "no such file or folder")
            yield uri
            return
        for path in walk_folder(local, left_out):
            yield to_uri(path)
        return
    rule = PathRule(left_out)
    for found in find_remote(uri):
        if found == uri or rule.takes(found[len(uri) :].lstrip("/")):
            yield found


def _split_member(path: str) -> tuple[str, str] | None:
    """The archive and the name in `archive::name`; None if there is no such archive."""
    end = path.find(_INSIDE)
    while end >= 0:
        archive = path[:end]
        if archive.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES) and os.path.isfile(archive):
            return archive, path[end + len(_INSIDE) :]
        end = path.find(_INSIDE, end + 1)
    return None


def _open_members(names: Iterable[str]) -> Iterator[Found]:
    """The same names, with a `Member` for each `archive::name`; each archive is opened once."""
    opened: OrderedDict[str, ZipIndex | TarFinder] = OrderedDict()
    for name in names:
        inside = None
        if _INSIDE in name and not is_uri(name) and not os.path.lexists(name):
            inside = _split_member(name)
        if inside is None:
            yield name
            continue
        archive, member = inside
        try:
            if archive not in opened:
                is_zip = archive.lower().endswith(ZIP_SUFFIXES)
                opened[archive] = ZipIndex(archive) if is_zip else TarFinder(archive)
                if len(opened) > _MAX_OPEN_ARCHIVES:
                    opened.popitem(last=False)
            opened.move_to_end(archive)
            yield opened[archive].find(member)
        except (ImageError, InputError) as error:
            yield Member(name, failing(ImageError(**error.parts() | {"where": name})))


def _nothing(path: str, kind: str, expected: str, left_out: Counter[str]) -> InputError:
    reasons = describe_left_out(left_out)
    return InputError(
        where="stdin" if path == STDIN else path,
        found=f"{kind} without images" + (f", with {reasons}" if reasons else ""),
        expected=expected,
        next_step="check the path",
    )
