"""Small pictures of test images inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from fedapt_runtime import Preprocessing
from fedapt_runtime.errors import ImageError

_SIDE = 96
_QUALITY = 80


def thumbnail(path: Path, preprocessing: Preprocessing) -> str:
    """The image as the model sees it, at most 96 pixels a side, as a data URL; empty if unreadable.

    The result has the pixels only, and no metadata.
    """
    try:
        picture = Image.fromarray(preprocessing.load(path))
    except ImageError:
        return ""
    picture.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
