"""One changed byte anywhere in a checkpoint, a head or a model: refused, or without any effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedapt.model.checkpoint import load_checkpoint
from fedapt_runtime import Classifier
from fedapt_runtime.errors import ReportedError
from fedapt_runtime.head import read_head
from tests.support.fusing import export_run

changes = st.integers(1, 255)
places = st.floats(0, 1, exclude_max=True)
few = settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def files(
    tiny_run: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    head = tmp_path_factory.mktemp("head") / "head.safetensors"
    export_run(tiny_run, head, head_only=True)
    return {"checkpoint": tiny_run / "checkpoint.safetensors", "head": head, "model": tiny_model}


def load_model(path: Path) -> Classifier:
    return Classifier.load(path, device="cpu")


LOADERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": load_checkpoint,
    "head": read_head,
    "model": load_model,
}


def find_weights(kind: str, data: bytes) -> range:
    """Where weights stand in a file."""
    if kind == "model":
        tensors = onnx.load_from_string(data).graph.initializer
        largest = max((tensor.raw_data for tensor in tensors), key=len)
        start = data.index(largest)
        return range(start, start + len(largest))
    return range(8 + int.from_bytes(data[:8], "little"), len(data))


@pytest.mark.parametrize("kind", LOADERS)
def test_any_byte_of_the_weights(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    data = files[kind].read_bytes()
    where = find_weights(kind, data)
    assert len(where) > 1000
    path = tmp_path / files[kind].name

    @few
    @given(places, changes)
    def attack(place: float, change: int) -> None:
        changed = bytearray(data)
        changed[where[int(place * len(where))]] ^= change
        path.write_bytes(changed)
        with pytest.raises(ReportedError, match=r"content of hash \w{12}, not \w{12}"):
            LOADERS[kind](path)

    attack()
    path.write_bytes(data)
    LOADERS[kind](path)


@pytest.mark.parametrize("kind", ["checkpoint", "head"])
def test_any_byte_of_the_description(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    data = files[kind].read_bytes()
    path = tmp_path / files[kind].name
    whole = LOADERS[kind](files[kind])

    @few
    @given(places, changes)
    def attack(place: float, change: int) -> None:
        changed = bytearray(data)
        changed[int(place * find_weights(kind, data).start)] ^= change
        path.write_bytes(changed)
        try:
            found = LOADERS[kind](path)
        except ReportedError:
            return
        # 1e-05 and 1E-05 are one number
        assert describe(found) == describe(whole)

    attack()


def describe(loaded: Any) -> Any:
    """Everything that was read, in values that can be compared."""
    if isinstance(loaded, tuple):
        return [describe(item) for item in loaded]
    if isinstance(loaded, dict):
        return {name: describe(value) for name, value in loaded.items()}
    if hasattr(loaded, "shape"):
        return np.asarray(loaded).tolist()
    return (
        {k: describe(v) for k, v in vars(loaded).items()} if hasattr(loaded, "__dict__") else loaded
    )
