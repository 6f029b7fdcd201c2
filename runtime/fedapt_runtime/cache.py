"""The cache folder for values that can be computed again: features, traced towers, measurements."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$FEDAPT_CACHE`, else `$XDG_CACHE_HOME/fedapt`, else `~/.cache/fedapt`.

    Raises:
        RuntimeError: none of them is set, and this user has no home folder.
    """
    if named := os.environ.get("FEDAPT_CACHE"):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "fedapt"
    return Path.home() / ".cache" / "fedapt"
