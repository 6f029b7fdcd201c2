"""Grey images of more than 8 bits, scaled to 8 bits by the range of their mode, not their values.

OpenCLIP clips such values at 255. A 16-bit image then becomes white, and a float image black. This
module gives the same pixels at any depth: a 16-bit image whose values are 257 times those of an
8-bit image becomes that 8-bit image, to the bit. 8-bit images, including colour images, do not
change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedapt_runtime.errors import ImageError

_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_MAX_16, _MAX_INT32, _MAX_UINT32 = (1 << 16) - 1, (1 << 31) - 1, (1 << 32) - 1
_STRIP_PIXELS = 1 << 20  # pixels that are in memory as floats at the same time
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2


def scale_to_8_bits(image: Image.Image, where: object) -> Image.Image:
    """The image in mode L if it has 16 bits, int32 or float; else the image itself.

    | mode | range |
    |---|---|
    | 16 bits | 0 to 65 535, or the range of the TIFF's bit depth (12 bits: 0 to 4 095) |
    | int32 | 0 to 255, 65 535 or 2**31 - 1: the smallest range that contains every value |
    | float | 0 to 1 |

    Raises:
        ImageError: the image has signed 8-bit integers, int32 below 0, or floats outside [0, 1] or
            NaN. The value of white is then unknown.
    """
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "L" and _first(tags, _SAMPLE_FORMAT) == _SIGNED:  # Pillow reads -1 as 255
        raise _refuse(where, "an image of signed 8-bit integers")
    if image.mode not in (*_16_BITS, "I", "F"):
        return image
    values = np.asarray(image)
    if image.mode == "I" and image.format == "TIFF" and _first(tags, _SAMPLE_FORMAT) == _UNSIGNED:
        values = values.view(np.uint32)
    levels = _scale(values, _find_top(image, values, tags, where))
    if image.mode in _16_BITS and _first(tags, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = 255 - levels
    return Image.fromarray(levels)


def _find_top(image: Image.Image, values: NDArray[Any], tags: Any, where: object) -> float:
    """The value of white."""
    if image.mode in _16_BITS:
        bits = _first(tags, _BITS)
        return (1 << bits) - 1 if isinstance(bits, int) and 8 < bits <= 16 else _MAX_16
    low, high = values.min(), values.max()  # NaN if any value is NaN
    if image.mode == "F":
        if not 0 <= low <= high <= 1:
            raise _refuse(where, f"a float image with values from {low:g} to {high:g}")
        return 1.0
    if low < 0:
        raise _refuse(where, f"an integer image with values from {low} to {high}")
    if image.format in ("PNG", "PPM"):  # older Pillow versions read their 16 bits as int32
        return _MAX_16
    widest = _MAX_UINT32 if values.dtype == np.uint32 else _MAX_INT32
    return next(top for top in (255, _MAX_16, widest) if high <= top)


def _scale(values: NDArray[Any], top: float) -> NDArray[np.uint8]:
    levels = np.empty(values.shape, dtype=np.uint8)
    rows = max(1, _STRIP_PIXELS // values.shape[1])
    for start in range(0, len(values), rows):
        strip = slice(start, start + rows)
        levels[strip] = np.rint(np.minimum(values[strip] * (255.0 / top), 255.0))
    return levels


def _first(tags: Any, tag: int) -> object:
    value = tags.get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _refuse(where: object, found: str) -> ImageError:
    return ImageError(
        where=where,
        found=found,
        expected="integers of 0 or more, or floats from 0 to 1",
        next_step="scale the value range of interest to 8 or 16 bits",
    )
