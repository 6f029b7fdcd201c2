"""Pillow's resize of RGB images in vector instructions: the same integers, so the same pixels.

Pillow resamples the columns, rounds to 8 bits, and resamples the rows, with integer weights of 22
fractional bits, one product at a time. vector_resize.ll computes eight products at a time, reads
Pillow's memory directly, and computes nothing outside the crop. llvmlite compiles it for the
processor of this machine. It runs without the interpreter lock. Pillow's own resize is used for
other modes, and on machines without llvmlite. The pixels are the same.

Source: Pillow, src/libImaging/Resample.c (`ImagingResampleHorizontal_8bpc`); the Arrow C data
interface (`struct ArrowArray`).
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, __version__

from fedapt_runtime.errors import MissingDependency, RuntimeFailure, first_line
from fedapt_runtime.resize_weights import Box, plan_resize

MODES = ("RGB", "L")
LOAD_SECONDS = 0.1  # CPU time of importing llvmlite and compiling, which short jobs avoid
_BLOCK = 8  # pixels of a row that the function `rows` of vector_resize.ll writes at once
_BAND_BYTES = 1 << 20  # piece of a large image; about the size of a core's cache
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_PROBES = (  # (width, height), resized to, (left, top, right, bottom) of the crop
    ((61, 43), (31, 22), (5, 0, 27, 22)),
    ((300, 217), (40, 28), (0, 0, 40, 28)),
    ((9, 11), (37, 45), (0, 4, 37, 41)),
)

Bytes = NDArray[np.uint8]


class Resize:
    """Resizes with Pillow at first, and with the vector code once loading it is worth its time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pillow_seconds = 0.0
        self._is_decided = False
        self._code: VectorCode | None = None

    @classmethod
    def always(cls, code: VectorCode | None) -> Resize:
        """A resize that always uses this code; None always uses Pillow."""
        resize = cls()
        resize._code, resize._is_decided = code, True
        return resize

    def try_vector(
        self, image: Image.Image, size: tuple[int, int], box: Box, interpolation: str
    ) -> Bytes | None:
        """Resize and crop; None if the image needs Pillow.

        Args:
            image: a loaded image whose mode is in `MODES`.
            size: (width, height) to resize to, other than the image's.
            box: (left, top, right, bottom) of the crop in the resized image.
            interpolation: `bicubic` or `bilinear`.

        Returns:
            uint8 RGB [height, width, 3].
        """
        return None if self._code is None else self._code.resize(image, size, box, interpolation)

    @contextmanager
    def count_pillow(self) -> Iterator[None]:
        """Add the time of a resize by Pillow; load the vector code when it exceeds its cost."""
        if self._is_decided:
            yield
            return
        started = time.thread_time()
        yield
        self._pillow_seconds += time.thread_time() - started
        # while one thread loads, the others continue with Pillow
        if self._pillow_seconds >= LOAD_SECONDS and self._lock.acquire(blocking=False):
            try:
                self._decide()
            finally:
                self._lock.release()

    def _decide(self) -> None:
        if self._is_decided:
            return
        try:
            self._code = load_vector_code()
        except (MissingDependency, RuntimeFailure):
            self._code = None  # `doctor` shows the reason
        self._is_decided = True


class VectorCode:
    """The compiled functions of vector_resize.ll.

    Raises:
        MissingDependency: llvmlite is not installed.
        RuntimeFailure: llvmlite cannot compile on this machine.
    """

    def __init__(self) -> None:
        llvm = _import_llvmlite()
        try:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            target = llvm.Target.from_default_triple().create_target_machine(
                cpu=llvm.get_host_cpu_name(),
                features=llvm.get_host_cpu_features().flatten(),
                opt=3,
            )
            module = llvm.parse_assembly(Path(__file__).with_suffix(".ll").read_text("utf-8"))
            module.verify()
            self._engine = llvm.create_mcjit_compiler(module, target)  # owns the machine code
            self._engine.finalize_object()
            address, number = ctypes.c_void_p, ctypes.c_int64
            function = ctypes.CFUNCTYPE(
                None, address, number, number, address, address, number, address, number, number
            )
            self._columns = function(self._engine.get_function_address("columns"))
            self._rows = function(self._engine.get_function_address("rows"))
        except Exception as error:  # from LLVM, the operating system or another llvmlite version
            raise _failure(f"{type(error).__name__}: {first_line(error)}") from error

    def resize(
        self, image: Image.Image, size: tuple[int, int], box: Box, interpolation: str
    ) -> Bytes | None:
        """Resize and crop, see `Resize.try_vector`."""
        width, height = box[2] - box[0], box[3] - box[1]
        plan = plan_resize(image.size, size, box, interpolation)
        if plan is None:
            return None
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        blocks = -(-width // _BLOCK)
        stride = 4 * _BLOCK * blocks
        lines = np.empty((plan.end_row - plan.first_row, stride), np.uint8)
        try:
            for top, band in _bands(rgb, plan.first_row, plan.end_row):
                self._columns(
                    band.ctypes.data,
                    band.shape[1],
                    band.shape[0],
                    plan.columns.starts.ctypes.data,
                    plan.columns.weights.ctypes.data,
                    plan.columns.weights.shape[1] // 8,
                    lines[top - plan.first_row :].ctypes.data,
                    stride,
                    width,
                )
        except ValueError:  # even a piece is in several blocks
            return None
        # the last block of the last row may extend past its end
        out = np.empty(3 * (height * width + _BLOCK), np.uint8)
        self._rows(
            lines.ctypes.data,
            stride,
            height,
            plan.rows.starts.ctypes.data,
            plan.rows.weights.ctypes.data,
            plan.rows.weights.shape[1],
            out.ctypes.data,
            3 * width,
            blocks,
        )
        return out[: 3 * height * width].reshape(height, width, 3)


def load_vector_code() -> VectorCode:
    """Compile the code, and compare it with the installed Pillow, whose version may differ.

    Raises:
        MissingDependency: llvmlite is not installed.
        RuntimeFailure: llvmlite cannot compile on this machine, or Pillow gives other pixels.
    """
    code = VectorCode()
    if not hasattr(Image.Image, "__arrow_c_array__"):
        raise _failure(f"Pillow {__version__}, which does not lend its memory; 11.2 and later do")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    for (width, height), size, box in _PROBES:
        image = Image.fromarray(pixels[:height, :width])
        for interpolation, resampling in _RESAMPLING.items():
            expected = np.asarray(image.resize(size, resampling).crop(box))
            found = code.resize(image, size, box, interpolation)
            if found is None or not np.array_equal(found, expected):
                raise _failure(f"other pixels than those of Pillow {__version__}")
    return code


def _import_llvmlite() -> Any:
    try:
        import llvmlite.binding
    except (ImportError, OSError) as error:
        raise MissingDependency(
            where="llvmlite",
            found=f"no usable llvmlite ({first_line(error)})",
            expected="llvmlite",
            next_step="pip install 'fedapt-runtime[vector]'",
        ) from error
    return llvmlite.binding


def _failure(found: str) -> RuntimeFailure:
    return RuntimeFailure(
        where="vector code of the resize",
        found=found,
        expected="the pixels of Pillow's resize",
        next_step="continue without: Pillow resizes, slower and with the same pixels",
    )


class _ArrowArray(ctypes.Structure):
    pass


_ArrowArray._fields_ = [  # the first fields of the structure
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset")),
    *((name, ctypes.c_int64) for name in ("n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _bands(image: Image.Image, first: int, end: int) -> Iterator[tuple[int, Bytes]]:
    """Rows `first` to `end` of an RGB image: (row, uint8 [rows, 4 * width]) of each piece.

    An array is valid until the next one. Pillow keeps a large image in several blocks, so its
    pieces are copied.
    """
    try:
        capsule, pixels = _pixels_of(image)
    except ValueError:
        step = max(1, _BAND_BYTES // (4 * image.width))
        for top in range(first, end, step):
            piece = image.crop((0, top, image.width, min(top + step, end)))
            capsule, pixels = _pixels_of(piece)
            yield top, pixels
    else:
        yield first, pixels[first:end]
    del capsule  # it kept the memory alive


def _pixels_of(image: Image.Image) -> tuple[object, Bytes]:
    """The capsule that owns the memory of an RGB image, and the memory: uint8 [height, 4 * width].

    Raises:
        ValueError: the memory is in several blocks.
    """
    _schema, capsule = image.__arrow_c_array__()
    array = _ArrowArray.from_address(_capsule_pointer(capsule, b"arrow_array"))
    values = array.children[0].contents if array.n_children == 1 else array
    count = 4 * image.width * image.height
    if values.length != count or values.offset or array.offset or values.n_buffers != 2:
        raise ValueError("other than 4 bytes a pixel")
    memory = (ctypes.c_uint8 * count).from_address(values.buffers[1])
    return capsule, np.ctypeslib.as_array(memory).reshape(image.height, 4 * image.width)
