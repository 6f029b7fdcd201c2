"""Where the test vectors and photos are; each can be elsewhere, and both may be absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SHARED = ROOT.parent / "shared"

GOLDEN = Path(os.environ.get("FEDAPT_GOLDEN", _SHARED / "golden" / "fedapt_official.npz"))
PHOTOS = Path(os.environ.get("FEDAPT_PHOTOS", _SHARED / "data" / "office_caltech10"))

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_file(), reason=f"no test vectors at {GOLDEN}: set FEDAPT_GOLDEN"
)
needs_photos = pytest.mark.skipif(
    not PHOTOS.is_dir(), reason=f"no Office-Caltech10 at {PHOTOS}: set FEDAPT_PHOTOS"
)
