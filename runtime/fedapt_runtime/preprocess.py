"""Image file -> uint8 array, bit for bit as in OpenCLIP's evaluation transform.

Training, export and deployment use this code. As in OpenCLIP, it resizes and crops in the image's
mode, converts to RGB last (which matters for palette and alpha images), and ignores EXIF
orientation. The exported graph scales to [0, 1] and normalises.

Source: open_clip.transform.image_transform(is_train=False), torchvision.transforms.functional
(`_compute_resized_output_size`, `center_crop`).
"""

from __future__ import annotations

import dataclasses
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fedapt_runtime import vector_resize
from fedapt_runtime.depth import scale_to_8_bits
from fedapt_runtime.errors import ImageError, ModelFileError
from fedapt_runtime.formats import FORMATS, optional_formats
from fedapt_runtime.resize_weights import Box

MAX_PIXELS = 100_000_000  # 300 MB decoded: enough for large photo sensors, not for attacks
MAX_CANVAS = 1024  # maximum pixels per side of an image that is resized on a GPU
MAX_FILE_BYTES = 512 * 1024 * 1024
_INTERPOLATION = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
RESIZE = vector_resize.Resize()
_RESIZE_MODES = ("shortest", "squash")
DEPTHS = ("scale", "openclip")

ImageSource = str | os.PathLike[str] | BinaryIO | Image.Image


@dataclass(frozen=True)
class Preprocessing:
    """OpenCLIP's preprocessing of an image for one model.

    Attributes:
        size: (height, width) of the array, in pixels.
        mean: mean of each channel, for values in [0, 1].
        std: standard deviation of each channel, for values in [0, 1].
        interpolation: `bicubic` or `bilinear`.
        resize_mode: `shortest` (resize the shorter side, crop the centre) or `squash`.
        depth: treatment of grey images with 16 bits, int32 or float: `scale` (see the module
            `depth`), or `openclip`, which clips values at 255 as OpenCLIP does. 8-bit images are
            the same in both.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    depth: str = "scale"

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS:
            raise ModelFileError(
                where="preprocessing",
                found=f"depth {self.depth!r}",
                expected=" or ".join(DEPTHS),
                next_step="install the version that wrote the file",
            )
        if self.interpolation not in _INTERPOLATION or self.resize_mode not in _RESIZE_MODES:
            raise ModelFileError(
                where="preprocessing",
                found=f"interpolation {self.interpolation!r}, resize mode {self.resize_mode!r}",
                expected=f"{' or '.join(_INTERPOLATION)}, and {' or '.join(_RESIZE_MODES)}",
                next_step="choose a CLIP model with one of these",
            )
        if self.resize_mode == "shortest" and self.size[0] != self.size[1]:
            raise ModelFileError(
                where="preprocessing",
                found=f"size {self.size} with resize mode 'shortest'",
                expected="equal height and width, or resize mode 'squash'",
                next_step="choose a CLIP model with square images",
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`, for fields from JSON.

        Files without `depth` are of versions that used `openclip`.
        """
        tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        _height, _width = tuples["size"]  # raises for other values, which would fail only later
        return cls(**{"depth": "openclip"} | tuples)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def image_to_array(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize, crop and convert one decoded image: uint8 [height, width, 3], RGB."""
        height, width = self.size
        size = self.resized_size(*image.size)
        top, left = self.crop_offset(*size)
        box = (left, top, left + width, top + height)
        if image.size == size or image.mode not in vector_resize.MODES:
            return self._convert(image, size, box)
        image.load()
        resized = RESIZE.try_vector(image, size, box, self.interpolation)
        if resized is None:
            with RESIZE.count_pillow():
                return self._convert(image, size, box)
        return resized

    def _convert(self, image: Image.Image, size: tuple[int, int], box: Box) -> NDArray[np.uint8]:
        height, width = self.size
        resized = image if image.size == size else image.resize(size, self._resample)
        if size != (width, height):  # a square image needs no crop
            resized = resized.crop(box)
        rgb = resized if resized.mode == "RGB" else resized.convert("RGB")
        return np.asarray(rgb, dtype=np.uint8)

    @property
    def _resample(self) -> Image.Resampling:
        return _INTERPOLATION[self.interpolation]

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the resized image, for an image of this width and height."""
        if self.resize_mode == "squash":
            return self.size[1], self.size[0]
        side, short, long = self.size[0], min(width, height), max(width, height)
        new_long = int(side * long / short)
        return (side, new_long) if width <= height else (new_long, side)

    def crop_offset(self, width: int, height: int) -> tuple[int, int]:
        """(top, left) of the crop in a resized image of this width and height."""
        # round half to even, as torchvision's center_crop does
        return round((height - self.size[0]) / 2.0), round((width - self.size[1]) / 2.0)

    def load(
        self,
        source: ImageSource,
        name: object = None,
        *,
        fast: bool = False,
        resize: bool = True,
        max_pixels: int | None = None,
    ) -> NDArray[np.uint8]:
        """Read one image: uint8 [height, width, 3], RGB.

        Args:
            source: a path, an open binary file, or a decoded Pillow image.
            name: name in messages; None uses the path.
            fast: decode a JPEG at 1/2, 1/4 or 1/8 of its size if that is still large enough; the
                pixels are then close to those of OpenCLIP, but not equal.
            resize: False does not resize RGB and grey images of up to `MAX_CANVAS` pixels per side,
                for `device_resize`, and decodes larger JPEGs as with `fast`. Other images are
                resized and cropped.
            max_pixels: limit for the image and the resized image; None uses `MAX_PIXELS`.

        Raises:
            ImageError: the file is missing, unreadable, too large, truncated, or not an image.
        """
        where = name if name is not None else source
        max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        if isinstance(source, Image.Image):
            _check_pixels(source.size, self, where, max_pixels)
            return self._finish(self._to_8_bits(source, where), resize)
        try:
            if isinstance(source, str | os.PathLike):
                _check_file(Path(source))
            with _SILENT_PILLOW, _open(source) as image:
                _check_pixels(image.size, self, where, max_pixels)
                if fast or not (resize or max(image.size) <= MAX_CANVAS):
                    # JPEG decoders scale at no cost; other decoders ignore this
                    image.draft(image.mode, self._min_size(image.size))
                return self._finish(self._to_8_bits(image, where), resize)
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise _unreadable(where, "not an image of a known format") from error
        except Image.DecompressionBombError as error:
            raise _unreadable(where, f"an image of more than {MAX_PIXELS:,} pixels") from error
        except FileNotFoundError as error:
            raise _unreadable(where, "no such file") from error
        except MemoryError as error:
            raise _unreadable(where, "an image that does not fit into memory") from error
        except OSError as error:
            raise _unreadable(where, f"an unreadable image ({error})") from error
        except Exception as error:
            # decoders raise SyntaxError, ValueError, struct.error and others on damaged bytes
            raise _unreadable(
                where, f"a damaged image ({type(error).__name__}: {error})"
            ) from error

    def _finish(self, image: Image.Image, resize: bool) -> NDArray[np.uint8]:
        # other modes are resized before the conversion to RGB; the order changes the pixels
        if resize or image.mode not in ("RGB", "L") or max(image.size) > MAX_CANVAS:
            return self.image_to_array(image)
        return np.asarray(image.convert("RGB"), dtype=np.uint8)

    def _to_8_bits(self, image: Image.Image, where: object) -> Image.Image:
        return scale_to_8_bits(image, where) if self.depth == "scale" else image

    def _min_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Minimum (width, height) of a decoded image, so that resizing does not enlarge it."""
        height, width = self.size
        if self.resize_mode == "squash":
            return width, height
        scale = height / min(size)
        return round(size[0] * scale), round(size[1] * scale)


class _SilentPillow:
    """Turns off Pillow's warnings while any thread is inside; the size check replaces them.

    Filters are global to the process, so one `catch_warnings` per thread would leave them changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_SILENT_PILLOW = _SilentPillow()


def _open(source: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    try:
        return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        if not (more := optional_formats()):  # only now, because the search for decoders is slow
            raise
        if not isinstance(source, str | os.PathLike):
            source.seek(0)
        return Image.open(source, formats=more)


def _unreadable(where: object, found: str) -> ImageError:
    return ImageError(
        where=where,
        found=found,
        expected=f"a complete {', '.join(FORMATS[:4])} or similar image",
        next_step="replace or remove the file",
    )


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise _unreadable(path, "a folder")
    if not path.is_file():
        # reading a pipe or a device could block forever
        raise _unreadable(path, "no such file" if not path.exists() else "not a regular file")
    size = path.stat().st_size
    if size == 0:
        raise _unreadable(path, "an empty file")
    if size > MAX_FILE_BYTES:
        raise _unreadable(path, f"a file of {size:,} bytes, over the limit of {MAX_FILE_BYTES:,}")


def _check_pixels(
    size: tuple[int, int], preprocessing: Preprocessing, where: object, max_pixels: int
) -> None:
    width, height = size
    scale = 1.0
    if preprocessing.resize_mode == "shortest":  # 1 x 9 000 pixels become 224 x 2 016 000
        scale = max(1.0, max(preprocessing.size) / min(width, height))
    if width * height * scale * scale > max_pixels:
        raise _unreadable(
            where, f"{width} x {height} pixels, over the limit of {max_pixels:,} (resized)"
        )
