"""Where the benchmarks find Office-Caltech10."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# as prompts name them
CLASSES = (
    "back pack",
    "bike",
    "calculator",
    "headphones",
    "keyboard",
    "laptop computer",
    "monitor",
    "mouse",
    "mug",
    "projector",
)
ROOT = Path(__file__).resolve().parents[1]


def photos_root() -> Path:
    """`$FEDAPT_PHOTOS`, else `../shared/data/office_caltech10`; ends the program where absent."""
    default = ROOT.parent / "shared" / "data" / "office_caltech10"
    root = Path(os.environ.get("FEDAPT_PHOTOS", default))
    if not root.is_dir():
        sys.exit(f"no Office-Caltech10 at {root}: set FEDAPT_PHOTOS to ROOT/<domain>/<class>/*.jpg")
    return root
