"""Where the output of a job goes: a file, or an object behind a URI. Whole or absent, both.

An unfinished job keeps its rows on the local disk in either case; an object is written at the end.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedapt_runtime.atomic import replace_file
from fedapt_runtime.remote import is_uri, write_remote

Destination = str | os.PathLike[str]


def local_path(out: Destination) -> Path:
    """Beside which path a job works: its own; for a URI, that name in the working folder."""
    return Path(os.fspath(out).rpartition("/")[2]) if is_uri(out) else Path(out)


@contextmanager
def deliver(out: Destination) -> Iterator[Path]:
    """Give a temporary path, whose file becomes the output when the block ends well.

    Raises:
        OSError: the folder or bucket cannot be written, or the disk is full.
    """
    if not is_uri(out):
        with replace_file(Path(out)) as temporary:
            yield temporary
        return
    local = local_path(out)
    with tempfile.TemporaryDirectory(prefix=f".{local.name}.", dir=local.parent) as folder:
        temporary = Path(folder, local.name)
        yield temporary
        write_remote(temporary, os.fspath(out))
