"""The destination of a job's output, a file or an object behind a URI; complete or absent.

In both cases an unfinished job keeps its rows on the local disk. An object is written at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote

from fedapt_runtime.atomic import remove_left_over, replace_file, temporary_folder
from fedapt_runtime.errors import OutputError
from fedapt_runtime.lock import Held, hold_file
from fedapt_runtime.remote import copy_remote, is_uri, write_remote

Destination = str | os.PathLike[str]
_LOCAL = "file://"


def local_path(out: Destination) -> Path:
    """The local path of a job's files; for an object, its name in the working folder."""
    if not is_object(out):
        text = os.fspath(out)
        # file:///path names this machine; file://host/path is not supported
        return Path(unquote(text[len(_LOCAL) :])) if text.startswith(_LOCAL) else Path(text)
    return Path(os.fspath(out).rpartition("/")[2])


def is_object(out: Destination) -> bool:
    """Whether this is the URI of an object that is not on the local disk."""
    return is_uri(out) and not os.fspath(out).startswith(_LOCAL)


@contextmanager
def claim(out: Destination) -> Iterator[None]:
    """Be the only job that writes an output while the block runs.

    Jobs on other machines that write the same object are not detected. The object of the last job
    remains, and is complete.

    Raises:
        OutputError: another job writes the output, or its folder cannot be written.
    """
    path = local_path(out)
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_file(path))
        except Held as held:
            raise OutputError(
                where=out,
                found=f"a file that {held.holder} is writing",
                expected="one job per output",
                next_step="wait until that job ends, or choose another output",
            ) from held
        except OSError as error:
            raise OutputError(
                where=out,
                found=f"{error.strerror or error} (the folder {path.parent})",
                expected="a folder that can be written",
                next_step="check its permissions and free space, or choose another folder",
            ) from error
        remove_left_over(path.parent)
        yield


@contextmanager
def fetch(out: Destination) -> Iterator[Path | None]:
    """Yield a local path with the existing output; None if there is none.

    Raises:
        OSError: the output cannot be read.
    """
    local = local_path(out)
    if not is_object(out):
        yield local if local.is_file() else None
        return
    with temporary_folder(local.parent) as folder:
        is_there = copy_remote(os.fspath(out), folder / local.name)
        yield folder / local.name if is_there else None


@contextmanager
def deliver(out: Destination) -> Iterator[Path]:
    """Yield a temporary path; its file becomes the output if the block raises no error.

    Raises:
        OSError: the folder or bucket cannot be written, or the disk is full.
    """
    local = local_path(out)
    if not is_object(out):
        with replace_file(local) as temporary:
            yield temporary
        return
    with temporary_folder(local.parent) as folder:
        temporary = folder / local.name
        yield temporary
        write_remote(temporary, os.fspath(out))
