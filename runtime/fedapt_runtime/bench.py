"""How fast a model is here: inference by batch size, and decoding, apart from each other."""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

from fedapt_runtime.backends.base import Backend
from fedapt_runtime.machine import usable_cores
from fedapt_runtime.preprocess import Preprocessing

_PHOTO = (480, 640)  # height and width of the JPEG that decoding is timed on
_LEAST_RUNS = 5
_LARGEST_BATCH, _WORTHWHILE, _SLOW_MS = 256, 1.05, 500.0


@dataclass(frozen=True)
class BatchTiming:
    """Inference of one batch size; times in milliseconds per batch, `runs` in all."""

    batch: int
    images_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    runs: int


@dataclass(frozen=True)
class BackendTiming:
    """Inference alone of one backend, from pixels in memory, `in_flight` batches at once."""

    backend: str
    in_flight: int
    batches: tuple[BatchTiming, ...]


@dataclass(frozen=True)
class BenchReport:
    """Figures of one model on one machine.

    Attributes:
        backends: what ran the graph, and where, each with its figures.
        decode_ms: reading and preprocessing one 640 x 480 JPEG on one thread.
        machine: processor, cores and versions.
    """

    backends: tuple[BackendTiming, ...]
    decode_ms: float
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def bench(backends: Iterable[Backend], batch_sizes: Sequence[int], seconds: float) -> BenchReport:
    """Time backends of one model, one after the other.

    Args:
        backends: at least one; each is loaded when its turn comes, so that none disturbs another.
        batch_sizes: each is timed for `seconds`, after one run that is not counted.
        seconds: of each batch size, and of decoding; at least five runs are timed in any case.
    """
    timed = []
    for backend in backends:
        preprocessing = backend.manifest.preprocessing
        batches = tuple(_time_batch(backend, size, seconds) for size in batch_sizes)
        timed.append(BackendTiming(backend.description, backend.in_flight, batches))
        del backend  # its threads end before the next is loaded
    return BenchReport(
        backends=tuple(timed),
        decode_ms=_time_decoding(preprocessing, seconds),
        machine={
            "processor": platform.processor() or platform.machine(),
            "cores": usable_cores(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("fedapt-runtime", "numpy", "pillow")},
        },
    )


def choose_batch_size(backend: Backend) -> int:
    """The smallest power of two that is about as fast as any larger one; takes a second or two."""
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


def _time_batch(backend: Backend, batch: int, seconds: float) -> BatchTiming:
    shape = (batch, *backend.manifest.preprocessing.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    backend.run(images)
    begun = time.perf_counter()

    def repeat(_: int) -> list[float]:
        times: list[float] = []
        while len(times) < _LEAST_RUNS or time.perf_counter() < begun + seconds:
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
    while len(times) < _LEAST_RUNS or time.perf_counter() < ends:
        encoded.seek(0)
        started = time.perf_counter()
        preprocessing.load(encoded, "a JPEG in memory")
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))
