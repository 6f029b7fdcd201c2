"""Images inside a tar archive.

A tar has no index. It is read from start to end, with one member in memory at a time.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator

from fedapt_runtime.errors import ImageError, ReportedError
from fedapt_runtime.foreign import explain
from fedapt_runtime.formats import LINK_OUT, SPECIAL, LeftOut, PathRule
from fedapt_runtime.preprocess import MAX_FILE_BYTES
from fedapt_runtime.sources.archives import (
    Member,
    failing,
    reading,
    resolve_link,
    too_large,
    unreadable,
)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_MAX_HEADER_BYTES = 1 << 20  # for a long name, or for the records of one member
_MAX_LINKS = 40  # in a chain; Linux has the same limit
_MAX_REWINDS = 100
_CHUNK_BYTES = 1 << 20
_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_RECORDS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class _Header(tarfile.TarInfo):
    """A header with size limits; tarfile alone would read a name of gigabytes into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _NAMES + _RECORDS and info.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info


def read_tar(path: str, left_out: LeftOut) -> Iterator[Member]:
    """Yield the images in a tar, compressed or not, in archive order.

    Hard and symbolic links follow after all other members, in a second pass. Each is read as its
    target. A damaged archive ends with a member whose `read` raises the error.

    Args:
        left_out: counts omitted members by reason.
    """
    rule = PathRule(left_out)
    links: dict[str, str] = {}
    where = path
    try:
        for archive, info in _walk(path):
            where = f"{path}::{info.name}"
            if info.isdir() or not rule.takes(info.name):
                continue
            if info.islnk() or info.issym():
                links[info.name] = _target(info)
            elif not info.isfile():
                left_out.add(SPECIAL)
            else:
                yield _read(archive, info, [where])[0]
        if links:
            yield from _read_links(path, links, left_out)
    except ReportedError:
        raise
    except Exception as error:
        # no later member can be read; one row reports that
        yield Member(where, failing(unreadable(where, f"a damaged archive ({explain(error)})")))


def _read_links(path: str, links: dict[str, str], left_out: LeftOut) -> Iterator[Member]:
    normal = {posixpath.normpath(name): target for name, target in links.items()}
    names_of: dict[str, list[str]] = {}
    for name, target in links.items():
        for _ in range(_MAX_LINKS):
            target = normal.get(target, target)
        names_of.setdefault(target, []).append(f"{path}::{name}")
    for archive, info in _walk(path):
        if info.isfile() and (names := names_of.pop(posixpath.normpath(info.name), None)):
            yield from _read(archive, info, names)
    for names in names_of.values():
        for _ in names:
            left_out.add(LINK_OUT)


class TarFinder:
    """Members of a tar by name; names in archive order are fastest.

    A member before the current position makes it read the archive again from the start. It does so
    a limited number of times, because a shuffled list of a large archive would take days.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._rest: Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]] = iter(())
        self._rewinds = -1  # the first pass is not a rewind

    def find(self, name: str) -> Member:
        """The member of this name. Its bytes are read now, because later calls move on."""
        full, wanted = f"{self._path}::{name}", posixpath.normpath(name)
        try:
            with reading(full, "a damaged archive"):
                for _ in range(_MAX_LINKS):
                    archive, info = self._seek(wanted, full)
                    if not (info.islnk() or info.issym()):
                        return _read(archive, info, [full])[0]
                    wanted = _target(info)
                raise unreadable(full, "a link that leads to no file")
        except ImageError as error:
            return Member(full, failing(error))

    def _seek(self, wanted: str, full: str) -> tuple[tarfile.TarFile, tarfile.TarInfo]:
        for _ in range(2):
            for archive, info in self._rest:
                if posixpath.normpath(info.name) == wanted:
                    return archive, info
            if self._rewinds >= _MAX_REWINDS:
                raise ImageError(
                    where=full,
                    found=f"the archive read {_MAX_REWINDS:,} times from its start",
                    expected="files in the archive's order",
                    next_step="sort the list in the archive's order, or unpack the archive",
                )
            self._rewinds += 1
            self._rest = _walk(self._path)
        for archive, info in self._rest:
            if posixpath.normpath(info.name) == wanted:
                return archive, info
        raise unreadable(full, "no such file in the archive")


def _walk(path: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members one by one.

    Raises:
        Exception: of any class: the archive is damaged, or has data after its end, which would be
            lost silently.
    """
    with tarfile.open(path, "r|*", tarinfo=_Header) as archive:
        while (info := archive.next()) is not None:
            yield archive, info
            # tarfile would keep the header of every member
            archive.members.clear()  # type: ignore[attr-defined]
        while rest := archive.fileobj.read(_CHUNK_BYTES):
            if rest.strip(b"\0"):
                raise tarfile.ReadError(
                    "data after the end of the archive, such as a second archive"
                )


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo, names: list[str]) -> list[Member]:
    """The current member under each of its names, with its bytes."""
    if info.size > MAX_FILE_BYTES:
        return [Member(name, failing(too_large(name, info.size))) for name in names]
    stream = archive.extractfile(info)
    data = b"" if stream is None else stream.read()
    return [Member(name, lambda: data) for name in names]


def _target(link: tarfile.TarInfo) -> str:
    """A link's target: hard links start at the archive's root, symbolic links at their folder."""
    name = "" if link.islnk() else link.name
    return resolve_link(name, link.linkname)
