"""The integer weights of Pillow's resize, for the results of a crop.

Source: Pillow, src/libImaging/Resample.c (`precompute_coeffs`, `bicubic_filter` with a = -0.5).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
_PRECISION_BITS = 22
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}


@dataclass(frozen=True)
class Axis:
    """The weights of one axis.

    Attributes:
        starts: int64 [results], the first pixel of each result.
        weights: int32 [results, taps], the weights of that pixel and the following ones.
    """

    starts: NDArray[np.int64]
    weights: NDArray[np.int32]

    @property
    def end(self) -> int:
        """The pixel after the last one that is read."""
        return int(self.starts.max()) + int(self.weights.shape[1])


@dataclass(frozen=True)
class Plan:
    """Both axes in the form for vector_resize.ll, which reads rows `first_row` to `end_row`."""

    columns: Axis
    rows: Axis
    first_row: int
    end_row: int


@functools.lru_cache(maxsize=256)  # folders have many sizes; a plan has about 40 kB
def plan_resize(
    size: tuple[int, int], new_size: tuple[int, int], box: Box, interpolation: str
) -> Plan | None:
    """The weights of a resize and its crop; None if Pillow computes in another order.

    Args:
        size, new_size: (width, height) before and after.
        box: (left, top, right, bottom) of the crop in the resized image.
        interpolation: `bicubic` or `bilinear`.
    """
    (width, height), (new_width, new_height) = size, new_size
    if new_height < height and height - new_height > 2 * (width - new_width):
        return None  # Pillow 13 resamples rows first if the height shrinks far more than the width
    left, top, right, bottom = box
    columns = _weigh(width, new_width, left, right - left, interpolation, even=True)
    rows = _weigh(height, new_height, top, bottom - top, interpolation, even=False)
    if columns.end > width:
        return None  # one result needs all pixels, whose number is odd
    first = int(rows.starts.min())
    return Plan(
        Axis(columns.starts * 4, np.repeat(columns.weights, 4, axis=1)),
        Axis(rows.starts - first, rows.weights),
        first,
        rows.end,
    )


def _weigh(
    length: int, new_length: int, first: int, count: int, interpolation: str, *, even: bool
) -> Axis:
    """The weights of the results `first` to `first + count` of an axis.

    All results have the same number of taps, which is even if `even` is set. Unneeded taps have
    weight 0.
    """
    scale = length / new_length
    centres = (np.arange(first, first + count) + 0.5) * scale
    if length == new_length:  # Pillow does not resample an axis that keeps its length
        starts = np.arange(first, first + count)
        ends = starts + 1
    else:
        support = _SUPPORT[interpolation] * max(scale, 1.0)
        starts = np.maximum((centres - support + 0.5).astype(np.int64), 0)
        ends = np.minimum((centres + support + 0.5).astype(np.int64), length)
    taps = int((ends - starts).max())
    taps += even and taps % 2
    # taps after the last pixel move before the first pixel of the result
    moved = np.maximum(np.minimum(starts, (length if even else ends[-1]) - taps), 0)
    pixels = moved[:, None] + np.arange(taps)
    distances = np.abs((pixels - centres[:, None] + 0.5) * (1.0 / max(scale, 1.0)))
    weights = _cubic(distances) if interpolation == "bicubic" else np.maximum(1 - distances, 0)
    if length == new_length:
        weights = np.ones_like(distances)
    weights[(pixels < starts[:, None]) | (pixels >= ends[:, None])] = 0
    total = np.cumsum(weights, axis=1)[:, -1:]  # adds in Pillow's order
    weights = weights / np.where(total == 0, 1, total) * (1 << _PRECISION_BITS)
    rounded = weights + np.where(weights < 0, -0.5, 0.5)
    return Axis(moved, rounded.astype(np.int32))


def _cubic(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    a = -0.5
    d = distances
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = (((d - 5) * d + 8) * d - 4) * a
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))
