"""Images inside archives: the parts that zip and tar share, and zip."""

from __future__ import annotations

import functools
import posixpath
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from fedapt_runtime.errors import ImageError, InputError
from fedapt_runtime.foreign import translate
from fedapt_runtime.formats import LINK_OUT, LeftOut, PathRule
from fedapt_runtime.preprocess import MAX_FILE_BYTES

ZIP_SUFFIXES = (".zip",)
_MAX_LINK_BYTES = 4096
_EXPECTED = "an image that can be read out of its archive"
_NEXT_STEP = "pack the archive again"


@dataclass(frozen=True)
class Member:
    """An image inside an archive.

    Attributes:
        name: `archive::path inside`.
        read: returns the bytes of the file; raises ImageError.
    """

    name: str
    read: Callable[[], bytes]


def failing(error: ImageError) -> Callable[[], bytes]:
    """A function for `Member.read` that raises this error, also in another process."""
    return functools.partial(_fail, error)


def _fail(error: ImageError) -> bytes:
    raise error


def reading(name: str, found: str) -> AbstractContextManager[None]:
    """Raise an ImageError in place of any exception of an archive library inside the block."""
    return translate(ImageError, where=name, found=found, expected=_EXPECTED, next_step=_NEXT_STEP)


def unreadable(name: str, found: str) -> ImageError:
    """The error of a member that cannot be read."""
    return ImageError(where=name, found=found, expected=_EXPECTED, next_step=_NEXT_STEP)


def too_large(name: str, size: int) -> ImageError:
    """The error of a member over the size limit of files, `size` in bytes."""
    return unreadable(name, f"a file of {size:,} bytes, over the limit of {MAX_FILE_BYTES:,}")


def resolve_link(name: str, target: str) -> str:
    """The target of a symbolic link inside an archive, from the archive's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


class ZipIndex:
    """A zip archive whose directory is read once. Threads can read members in parallel.

    The archive is closed when no reference to it or to a member is left.

    Raises:
        InputError: the file is not a zip archive, or it is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        with translate(
            InputError,
            where=path,
            found="a damaged archive",
            expected="images, or folders, archives, lists or patterns of images",
            next_step="check the path",
        ):
            self._archive = zipfile.ZipFile(path)

    def members(self, left_out: LeftOut) -> Iterator[Member]:
        """Yield the images in archive order; a link to a member is read as its target.

        Args:
            left_out: counts omitted members by reason.
        """
        rule = PathRule(left_out)
        for info in self._archive.infolist():
            if info.is_dir() or not rule.takes(info.filename.replace("\\", "/")):
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                target = self._follow(info)
                if target is None:
                    left_out.add(LINK_OUT)
                    continue
                yield self._member(info.filename, target)
            else:
                yield self._member(info.filename, info)

    def find(self, name: str) -> Member:
        """The member of this name.

        Raises:
            ImageError: there is none.
        """
        try:
            info = self._archive.getinfo(name)
        except KeyError as error:
            raise unreadable(f"{self.path}::{name}", "no such file in the archive") from error
        if stat.S_ISLNK(info.external_attr >> 16):
            info = self._follow(info) or info
        return self._member(name, info)

    def _member(self, name: str, info: zipfile.ZipInfo) -> Member:
        full = f"{self.path}::{name}"
        return Member(full, lambda: self._read(info, full))

    def _read(self, info: zipfile.ZipInfo, name: str) -> bytes:
        if info.file_size > MAX_FILE_BYTES:
            raise too_large(name, info.file_size)
        with reading(name, "a damaged archive member"):
            with self._lock:  # zipfile's count of open members is not safe for threads
                stream = self._archive.open(info)
            try:
                return stream.read()  # zipfile reads at most the declared size
            finally:
                with self._lock:
                    stream.close()

    def _follow(self, info: zipfile.ZipInfo) -> zipfile.ZipInfo | None:
        seen = set()
        while stat.S_ISLNK(info.external_attr >> 16):
            if info.filename in seen or info.file_size > _MAX_LINK_BYTES:
                return None
            seen.add(info.filename)
            try:
                text = self._read(info, info.filename).decode("utf-8", "surrogateescape")
                info = self._archive.getinfo(resolve_link(info.filename, text))
            except (ImageError, KeyError):
                return None
        return info
