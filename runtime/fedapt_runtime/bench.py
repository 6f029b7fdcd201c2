"""Speed of a model on this machine: decoding, and inference by backend, precision and batch size.

Every speed comes with an agreement: all backends are compared with the first on the same images.
"""

from __future__ import annotations

import io
import itertools
import platform
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedapt_runtime.backends.base import Backend, Outputs
from fedapt_runtime.errors import InputError
from fedapt_runtime.machine import decode_threads, usable_cores
from fedapt_runtime.pipeline import decode_ahead
from fedapt_runtime.preprocess import Preprocessing
from fedapt_runtime.sources import find_images

_PHOTO = (480, 640)  # height and width of the JPEG for the time of decoding
_MIN_RUNS = 5
# number of images for the comparison of backends: of noise; maximum of given images
_COMPARED, _MAX_COMPARED = 32, 512
_LARGEST_BATCH, _WORTHWHILE, _SLOW_MS = 256, 1.05, 500.0


@dataclass(frozen=True)
class BatchTiming:
    """Inference at one batch size: percentiles in milliseconds per batch, over `runs` batches."""

    batch: int
    images_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    runs: int


@dataclass(frozen=True)
class BackendTiming:
    """Speed of one backend's inference, without decoding.

    Attributes:
        backend: description of the backend.
        compute: its compute precision, see `backends.base.Backend`.
        in_flight: number of batches that run at the same time.
        batches: the figures for each batch size.
        feature_difference: maximum absolute difference of unit features from the first backend.
        labels_changed: number of images whose label differs from the first backend.
    """

    backend: str
    compute: str
    in_flight: int
    batches: tuple[BatchTiming, ...]
    feature_difference: float
    labels_changed: int


@dataclass(frozen=True)
class BenchReport:
    """Figures of one model on one machine.

    Attributes:
        backends: results of each backend and device.
        compared_on: description of the images for the comparison of backends.
        decode_ms: milliseconds to decode and preprocess one 640 x 480 JPEG on one thread.
        machine: processor, cores and versions.
    """

    backends: tuple[BackendTiming, ...]
    compared_on: str
    decode_ms: float
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def bench(
    backends: Iterable[Backend],
    batch_sizes: Sequence[int],
    seconds: float,
    images: NDArray[np.uint8] | None = None,
) -> BenchReport:
    """Time backends of one model, one after the other.

    Args:
        backends: at least one. A generator can load each backend just before its turn, so that
            backends do not compete.
        batch_sizes: batch sizes to time, each after one run that is not counted.
        seconds: time for each batch size, and for decoding; at least five runs are timed.
        images: images for the comparison of backends, uint8 [n, height, width, 3]; None uses noise.
    """
    timed: list[BackendTiming] = []
    compared_on = f"{_COMPARED if images is None else len(images)} images"
    compared_on += " of noise" if images is None else ""
    known: Outputs | None = None
    for backend in backends:
        preprocessing = backend.manifest.preprocessing
        batches = tuple(_time_batch(backend, size, seconds) for size in batch_sizes)
        found = _run_all(backend, _noise(backend, _COMPARED) if images is None else images)
        known = found if known is None else known
        timed.append(
            BackendTiming(
                backend=backend.description,
                compute=backend.compute,
                in_flight=backend.in_flight,
                batches=batches,
                feature_difference=float(np.abs(_unit(found) - _unit(known)).max()),
                labels_changed=int((found.logits.argmax(-1) != known.logits.argmax(-1)).sum()),
            )
        )
        del backend  # its threads end before the next is loaded
    return BenchReport(
        backends=tuple(timed),
        compared_on=compared_on,
        decode_ms=_time_decoding(preprocessing, seconds),
        machine={
            "processor": platform.processor() or platform.machine(),
            "cores": usable_cores(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("fedapt-runtime", "numpy", "pillow")},
        },
    )


def load_images(paths: Sequence[str], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The first readable images, at most 512, for comparisons: uint8 [n, height, width, 3].

    Args:
        paths: see `sources.find_images`.
        preprocessing: preprocessing of the model.

    Raises:
        InputError: there is no readable image.
    """
    decoded = decode_ahead(find_images(paths), preprocessing, decode_threads(), ahead=64)
    readable = (item.pixels for item in decoded if item.pixels is not None)
    pixels = list(itertools.islice(readable, _MAX_COMPARED))
    if not pixels:
        raise InputError(
            where="images to compare backends on",
            found="no readable image",
            expected="at least one readable image",
            next_step="pass images or folders, or omit the images to use noise",
        )
    return np.stack(pixels)


def choose_batch_size(backend: Backend) -> int:
    """The minimum power of two that is about as fast as larger ones; takes 1 to 2 seconds."""
    best, rate = 1, 0.0
    size = 1
    while size <= _LARGEST_BATCH:
        timing = _time_batch(backend, size, seconds=0.0)
        if timing.images_per_second < _WORTHWHILE * rate:
            break
        best, rate = size, timing.images_per_second
        if timing.p50_ms > _SLOW_MS:
            break
        size *= 2
    return best


def _noise(backend: Backend, n_images: int) -> NDArray[np.uint8]:
    shape = (n_images, *backend.manifest.preprocessing.size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _run_all(backend: Backend, images: NDArray[np.uint8]) -> Outputs:
    size = backend.default_batch
    parts = [backend.run(images[i : i + size]) for i in range(0, len(images), size)]
    return Outputs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _unit(outputs: Outputs) -> NDArray[np.float32]:
    norms = np.linalg.norm(outputs.features, axis=-1, keepdims=True)
    return np.asarray(outputs.features / np.maximum(norms, np.finfo(np.float32).tiny))


def _time_batch(backend: Backend, batch: int, seconds: float) -> BatchTiming:
    images = _noise(backend, batch)
    backend.run(images)
    begun = time.perf_counter()

    def repeat(_: int) -> list[float]:
        times: list[float] = []
        while len(times) < _MIN_RUNS or time.perf_counter() < begun + seconds:
            started = time.perf_counter()
            backend.run(images)
            times.append(time.perf_counter() - started)
        return times

    with ThreadPoolExecutor(backend.in_flight) as pool:
        times = [t for part in pool.map(repeat, range(backend.in_flight)) for t in part]
    rate = batch * len(times) / (time.perf_counter() - begun)
    p50, p95, p99 = (1e3 * float(value) for value in np.percentile(times, (50, 95, 99)))
    return BatchTiming(batch, rate, p50, p95, p99, len(times))


def _time_decoding(preprocessing: Preprocessing, seconds: float) -> float:
    # smooth noise: a JPEG of about the size of a photo's
    small = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize(_PHOTO[::-1], Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    photo.save(encoded, "JPEG", quality=90)
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < _MIN_RUNS or time.perf_counter() < ends:
        encoded.seek(0)
        started = time.perf_counter()
        preprocessing.load(encoded, "a JPEG in memory")
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))
