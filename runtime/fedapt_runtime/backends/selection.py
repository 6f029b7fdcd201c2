"""The fastest backend, compute precision and batch size for a model on this CPU, measured once.

No rule predicts it: convolutions and transformers, AVX2 and AMX, two cores and ninety-six have
different winners. So the candidates run for about a second when a model is first loaded on a
machine. The result is kept in the user's cache, under a hash of the model, the machine and the
versions; later loads read it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedapt_runtime.atomic import replace_file
from fedapt_runtime.backends.base import Backend
from fedapt_runtime.cache import cache_folder
from fedapt_runtime.machine import processor_facts, usable_cores

SECONDS = 1.0  # of all timed runs together
BATCH_SIZES = {"throughput": (4, 8, 16), "latency": (8, 32)}
_WORTHWHILE = 1.05  # how much faster a later candidate or a larger batch has to be
_PACKAGES = ("fedapt-runtime", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino")


class Candidate(NamedTuple):
    """A way to run the graph.

    Attributes:
        backend: one of `options.BACKENDS`.
        compute: one of `options.COMPUTE`.
    """

    backend: str
    compute: str


class Selection(NamedTuple):
    """The fastest candidate.

    Attributes:
        candidate: the backend to load.
        batch_size: images of a batch.
        from_cache: an earlier load measured it.
    """

    candidate: Candidate
    batch_size: int
    from_cache: bool


def describe_machine() -> dict[str, Any]:
    """Processor with its instruction sets, cores that this process may use, and versions."""
    facts: dict[str, Any] = {"machine": platform.machine(), "cores": usable_cores()}
    facts |= processor_facts() or {"processor": platform.processor()}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def select(
    candidates: Sequence[Candidate],
    load: Callable[[Candidate], Backend],
    determined_by: Mapping[str, Any],
    hint: str,
) -> Selection:
    """The fastest of several candidates, from the cache or by a measurement.

    Args:
        candidates: the first is taken unless another is at least 5 % faster.
        load: loads one; they are loaded one after the other, so that memory holds one model.
        determined_by: inputs of the result besides the machine: the model's hash, threads.
        hint: one of `options.PERFORMANCE_HINTS`.

    Raises:
        ReportedError: a candidate does not load.
    """
    key = {
        "candidates": [list(candidate) for candidate in candidates],
        "batch_sizes": list(BATCH_SIZES[hint]),
        "hint": hint,
        **determined_by,
        **describe_machine(),
    }
    path = _cache_path(key)
    if path is not None and (known := _read(path, key, candidates, hint)) is not None:
        return known
    best: Selection | None = None
    best_rate = 0.0
    rates: dict[str, float] = {}
    for candidate in candidates:
        backend = load(candidate)
        size, rate = _measure(backend, BATCH_SIZES[hint], SECONDS / len(candidates))
        del backend  # its memory and threads are free before the next is loaded
        rates[" ".join(candidate)] = round(rate, 2)
        if best is None or rate > _WORTHWHILE * best_rate:
            best, best_rate = Selection(candidate, size, from_cache=False), rate
    if best is None:
        raise AssertionError("a selection takes at least one candidate")
    if path is not None:
        _write(path, key, best, rates)
    return best


def _measure(backend: Backend, sizes: Sequence[int], seconds: float) -> tuple[int, float]:
    """The best batch size, and its images per second, `backend.in_flight` batches at once."""
    shape = (max(sizes), *backend.manifest.preprocessing.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    with ThreadPoolExecutor(backend.in_flight) as pool:

        def run(size: int) -> float:
            """Seconds for an image."""
            started = time.perf_counter()
            list(pool.map(backend.run, [images[:size]] * backend.in_flight))
            return (time.perf_counter() - started) / (size * backend.in_flight)

        run(1)
        one = run(1)
        best, best_rate = backend.default_batch, 1 / one
        share = seconds / len(sizes)
        fitting = [size for size in sizes if one * size * backend.in_flight <= share]
        for i, size in enumerate(fitting):
            ends = time.perf_counter() + share
            run(size)  # the first run of a size allocates
            shortest = run(size)
            while time.perf_counter() < ends:
                shortest = min(shortest, run(size))
            rate = 1 / shortest
            if i == 0 or rate > _WORTHWHILE * best_rate:
                best, best_rate = size, rate
    return best, best_rate


def _cache_path(key: Mapping[str, Any]) -> Path | None:
    """Path of the cached selection; None if this user has no cache."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    try:
        return cache_folder() / "backends" / f"{digest[:32]}.json"
    except RuntimeError:
        return None


def _read(
    path: Path, key: Mapping[str, Any], candidates: Sequence[Candidate], hint: str
) -> Selection | None:
    """The cached selection; None if it is missing or unreadable."""
    try:
        found = json.loads(path.read_bytes())
        candidate = Candidate(found["backend"], found["compute"])
        size = found["batch_size"]
        is_known = found["determined_by"] == key and candidate in candidates
        if not is_known or type(size) is not int or not 1 <= size <= max(32, *BATCH_SIZES[hint]):
            return None
        return Selection(candidate, size, from_cache=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _write(path: Path, key: Mapping[str, Any], found: Selection, rates: dict[str, float]) -> None:
    answer = {
        "backend": found.candidate.backend,
        "compute": found.candidate.compute,
        "batch_size": found.batch_size,
        "images_per_second": rates,
        "determined_by": key,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(answer, indent=2) + "\n", "utf-8")
    except OSError:
        pass  # a cache that cannot be written costs a second, not correctness
