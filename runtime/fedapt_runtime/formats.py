"""The rule for image files, shared by training, folders, archives and URIs.

A file named explicitly, on a command line or in a list, is read whatever its suffix. This rule
selects the files of a folder, an archive or a prefix, and gives the reason for each omitted file.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from PIL import features

# suffix -> the decoder of Pillow that reads it
SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".jif": "JPEG",
    ".pjpeg": "JPEG",
    ".pjp": "JPEG",
    ".mpo": "JPEG",
    ".png": "PNG",
    ".apng": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".pfm": "PPM",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".hif": "HEIF",
}
# the decoders that photos need; Pillow has about 50, and fewer decoders are safer
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# packages that add HEIF to Pillow with their function `register_heif_opener`
_HEIF = ("pi_heif", "pillow_heif")
# folders in which macOS, Synology, QNAP and Windows keep thumbnails, metadata and deleted files
_SYSTEM_FOLDERS = frozenset(
    {
        "__MACOSX",
        "@eaDir",
        "@Recycle",
        "@Recently-Snapshot",
        "#recycle",
        "#snapshot",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
    }
)

HIDDEN_FILE, HIDDEN_FOLDER = "hidden files", "hidden folders"
APPLE_DOUBLE = "AppleDouble files of macOS, ._*"
SYSTEM_FOLDER = "system folders, such as __MACOSX and @eaDir"
LOOP = "links to a folder above them"
SEEN = "links to a folder that is read under another name"
LINK_OUT = "links without a target in the archive"
SPECIAL = "pipes, devices and other special files"
NO_PATH = "table rows without a path"
OTHER = "files with other suffixes"
_MAX_REASONS = 40


class LeftOut(Counter[str]):
    """Numbers of omitted files and folders, by reason."""

    def add(self, reason: str) -> None:
        """Count one file or folder. Beyond 40 reasons, new suffixes are counted together."""
        if reason not in self and reason.startswith(".") and len(self) >= _MAX_REASONS:
            reason = OTHER
        self[reason] += 1


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Text such as ".txt files (12), hidden folders (1)", in descending order."""
    ordered = sorted(left_out.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} ({count})" for reason, count in ordered)


@lru_cache(maxsize=1)
def optional_formats() -> tuple[str, ...]:
    """AVIF and HEIF, if the installed Pillow has a decoder."""
    formats = ["AVIF"] if features.check("avif") else []
    for package in _HEIF:
        try:
            importlib.import_module(package).register_heif_opener()
        except Exception:  # not installed, or incompatible with this Pillow
            continue
        return (*formats, "HEIF")
    return tuple(formats)


def reason_to_skip_folder(name: str) -> str | None:
    """The reason why a folder of this name is skipped; None if it is entered."""
    if name in _SYSTEM_FOLDERS:
        return SYSTEM_FOLDER
    return HIDDEN_FOLDER if name.startswith(".") else None


def reason_to_skip_file(name: str) -> str | None:
    """The reason why a file of this name is skipped; None for an image."""
    if name.startswith("."):
        return APPLE_DOUBLE if name.startswith("._") else HIDDEN_FILE
    stem, dot, end = name.rpartition(".")
    suffix = f".{end.lower()}" if stem and dot else ""
    if (needed := SUFFIXES.get(suffix)) is None:
        return f"{suffix} files" if suffix[1:].isalnum() and len(suffix) <= 9 else OTHER
    if needed in FORMATS or needed in optional_formats():
        return None
    return f"{suffix} files, whose decoder is missing"


class PathRule:
    """The rule for paths inside one archive or prefix, which lists files but no folders.

    An omitted folder counts once, as it does on a disk.
    """

    def __init__(self, left_out: LeftOut) -> None:
        self._left_out = left_out
        self._closed: set[str] = set()

    def takes(self, path: str) -> bool:
        """Whether the file at this path (parts separated by /) is an image to read."""
        *folders, name = path.split("/")
        for depth, folder in enumerate(folders, start=1):
            if folder in ("", ".", ".."):
                continue
            if reason := reason_to_skip_folder(folder):
                closed = "/".join(folders[:depth])
                if closed not in self._closed:
                    self._closed.add(closed)
                    self._left_out.add(reason)
                return False
        if reason := reason_to_skip_file(name):
            self._left_out.add(reason)
        return reason is None
