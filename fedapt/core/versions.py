"""Versions of the software that affects a result."""

from __future__ import annotations

from importlib.metadata import version

import fedapt


def software_versions() -> dict[str, str]:
    """Name -> version."""
    names = ("torch", "open_clip_torch", "numpy", "pillow")
    return {"fedapt": fedapt.__version__} | {name: version(name) for name in names}
