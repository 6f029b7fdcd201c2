"""A fake engine on disk, and what its backend must do wherever it computes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedapt_runtime.backends import tensorrt as tensorrt_module
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.tensorrt import TensorRtBackend
from fedapt_runtime.errors import RuntimeFailure
from tests.support.manifests import make_manifest
from tests.support.tensorrt_library import FakePlan, Library, expected_rows

PLAN = FakePlan()


def write_engine(folder: Path, plan: FakePlan = PLAN, **changes: object) -> Path:
    """The plan and a description that fits it: two classes, one domain, images of 2 x 2 pixels."""
    path = folder / "model.engine"
    path.write_bytes(plan.to_bytes())
    fields: dict[str, Any] = {
        "flavour": "tensorrt",
        "library": {"name": "tensorrt", "version": Library.__version__},
        "compute_capabilities": ["default"],
        "batch": [plan.min_batch, plan.max_batch],
        "engine_sha256": hashlib.sha256(plan.to_bytes()).hexdigest(),
        "manifest": dataclasses.asdict(make_manifest(("a", "b"), ("x",))),
    }
    path.with_name("model.engine.json").write_text(json.dumps(fields | changes))
    return path


def load(path: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> TensorRtBackend:
    """The backend of an engine, with a library in place of TensorRT."""
    monkeypatch.setattr(tensorrt_module, "import_library", lambda _: library)
    return TensorRtBackend(path)


def draw(batch: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (batch, 2, 2, 3), dtype=np.uint8)


def assert_rows(found: Outputs, images: NDArray[np.uint8]) -> None:
    for a, b in zip(found, expected_rows(images, PLAN), strict=True):
        np.testing.assert_array_equal(a, b)


def every_batch_of_every_run_is_right(backend: TensorRtBackend, library: Library) -> None:
    for repeat in range(8):  # in turn: a shared context, one of its own, a recording, launches
        for batch in (1, 2, 5, 8, 9, 30):
            images = draw(batch, 100 * repeat + batch)
            assert_rows(backend.run(images), images)


def sizes_change_between_graphs(backend: TensorRtBackend, library: Library) -> None:
    for i, batch in enumerate([8, 3] * 8 + [5, 3, 8, 5, 3, 5, 5, 8, 3]):
        images = draw(batch, i)
        assert_rows(backend.run(images), images)


def threads_share_the_streams(backend: TensorRtBackend, library: Library) -> None:
    batches = [draw(1 + i % 12, i) for i in range(60)]
    with ThreadPoolExecutor(6) as pool:
        for images, found in zip(batches, pool.map(backend.run, batches, timeout=60), strict=True):
            assert_rows(found, images)


def an_enqueue_that_fails_in_a_recording_ends_it(
    backend: TensorRtBackend, library: Library
) -> None:
    for _ in range(4):  # two on each stream: the next run of this size is recorded
        backend.run(draw(5))
    plan = library.engines[0].plan
    plan.fails = ("enqueue",)
    found = r"found an engine that does not run a batch of 5 \(enqueue failed\)"
    with pytest.raises(RuntimeFailure, match=found):
        backend.run(draw(5))
    assert library.machine.count_recordings() == 0
    plan.fails = ()
    for seed in range(4):
        images = draw(5, seed)
        assert_rows(backend.run(images), images)


CHECKS: list[Callable[[TensorRtBackend, Library], None]] = [
    every_batch_of_every_run_is_right,
    sizes_change_between_graphs,
    threads_share_the_streams,
    an_enqueue_that_fails_in_a_recording_ends_it,
]
