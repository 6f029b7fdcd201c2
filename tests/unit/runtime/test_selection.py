"""The fastest candidate is taken, and measured once, until something that decides it changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedapt_runtime import cache, machine
from fedapt_runtime.backends import selection
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.selection import Candidate, Selection, select
from tests.support.manifests import make_manifest

ORT, OPENVINO = Candidate("onnxruntime", "fp32"), Candidate("openvino", "fp32")
BF16 = Candidate("openvino", "bf16")


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class FakeBackend:
    """Takes `ms` an image, and 10 ms more a batch, as far as the batch is no larger than 8."""

    name, compute, description = "onnxruntime", "fp32", "a fake"
    in_flight, default_batch, task_size = 1, 32, 0
    manifest = make_manifest(("a", "b"), ("x",))

    def __init__(self, clock: Clock, ms: float) -> None:
        self.clock, self.ms = clock, ms

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        slow = 2 if len(images) > 8 else 1
        self.clock.now += (10 + self.ms * len(images) * slow) / 1e3
        rows = np.zeros((len(images), 2), np.float32)
        return Outputs(rows, rows[:, :1] + 1, rows)


class Machine:
    """Candidates of given speeds, and a count of how often each was loaded."""

    def __init__(self, clock: Clock, ms: Mapping[Candidate, float]) -> None:
        self.clock, self.ms = clock, ms
        self.loaded: list[Candidate] = []

    def load(self, candidate: Candidate) -> FakeBackend:
        self.loaded.append(candidate)
        return FakeBackend(self.clock, self.ms[candidate])

    def select(self, hint: str = "throughput", **determined_by: object) -> Selection:
        return select(list(self.ms), self.load, {"model": "m", **determined_by}, hint)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    clock = Clock()
    monkeypatch.setattr(selection.time, "perf_counter", clock.perf_counter)
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path / "cache"))
    return clock


def test_the_fastest_is_taken_with_its_best_batch(clock: Clock) -> None:
    found = Machine(clock, {ORT: 2.0, OPENVINO: 1.0, BF16: 1.5}).select()
    # batches of 8 share the 10 ms of a batch among most images; larger ones are slower
    assert found == Selection(OPENVINO, 8, from_cache=False)


def test_the_first_stays_where_another_is_hardly_faster(clock: Clock) -> None:
    # batches of 8: 10 + 8 * 2 = 26 ms, and 25.2 and 24.4 ms: 3 and 7 % faster
    assert Machine(clock, {ORT: 2.0, OPENVINO: 1.9}).select().candidate == ORT
    assert Machine(clock, {ORT: 2.0, OPENVINO: 1.8}).select(model="n").candidate == OPENVINO


def test_a_model_that_is_slow_is_run_one_image_at_a_time(clock: Clock) -> None:
    machine = Machine(clock, {ORT: 3000.0, OPENVINO: 1000.0})
    found = machine.select()
    assert found == Selection(OPENVINO, FakeBackend.default_batch, from_cache=False)
    assert clock.now == pytest.approx(2 * (3.010 + 1.010))  # each ran twice


def test_the_measurement_is_kept(clock: Clock, tmp_path: Path) -> None:
    machine = Machine(clock, {ORT: 2.0, OPENVINO: 1.0})
    first = machine.select()
    assert machine.loaded == [ORT, OPENVINO]
    assert machine.select() == first._replace(from_cache=True)
    assert machine.loaded == [ORT, OPENVINO]
    (file,) = (tmp_path / "cache" / "backends").iterdir()
    kept = json.loads(file.read_text("utf-8"))
    assert (kept["backend"], kept["compute"], kept["batch_size"]) == ("openvino", "fp32", 8)
    assert kept["images_per_second"]["openvino fp32"] == pytest.approx(8 / 0.018, abs=0.01)
    assert kept["determined_by"]["model"] == "m"


@pytest.mark.parametrize("change", ["model", "threads", "hint", "candidates", "cores", "versions"])
def test_another_model_or_machine_is_measured_anew(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    speeds = {ORT: 2.0, OPENVINO: 1.0}
    Machine(clock, speeds).select(threads=0)
    hint, determined_by = "throughput", {"threads": 0}
    if change == "model":
        determined_by["model"] = "another"  # type: ignore[assignment]
    elif change == "threads":
        determined_by["threads"] = 1
    elif change == "hint":
        hint = "latency"
    elif change == "candidates":
        speeds[BF16] = 3.0
    elif change == "cores":
        monkeypatch.setattr(selection, "usable_cores", lambda: 1000)
    else:
        monkeypatch.setattr(selection, "version", lambda package: "9.9")
    again = Machine(clock, speeds)
    assert not again.select(hint, **determined_by).from_cache
    assert again.loaded == list(speeds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 99_999,
        "[]",
        '{"backend": "openvino", "compute": "fp32", "batch_size": 8}',
        "batch_size=8",
    ],
)
def test_a_file_of_something_else_is_measured_over(clock: Clock, tmp_path: Path, text: str) -> None:
    machine = Machine(clock, {ORT: 2.0, OPENVINO: 1.0})
    machine.select()
    (file,) = (tmp_path / "cache" / "backends").iterdir()
    file.write_text(text)
    assert not machine.select().from_cache
    assert machine.select().from_cache


@pytest.mark.parametrize(
    ("field", "value"), [("batch_size", 10**9), ("batch_size", True), ("backend", "abacus")]
)
def test_an_answer_that_none_could_give_is_measured_over(
    clock: Clock, tmp_path: Path, field: str, value: object
) -> None:
    machine = Machine(clock, {ORT: 2.0, OPENVINO: 1.0})
    machine.select()
    (file,) = (tmp_path / "cache" / "backends").iterdir()
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {field: value}))
    assert not machine.select().from_cache


def test_without_a_cache_every_load_measures(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path / "file"))  # no folder can be made there
    machine = Machine(clock, {ORT: 2.0, OPENVINO: 1.0})
    assert machine.select() == machine.select() == Selection(OPENVINO, 8, from_cache=False)

    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(selection, "cache_folder", no_home)
    assert machine.select() == Selection(OPENVINO, 8, from_cache=False)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FEDAPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "fedapt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache.cache_folder() == tmp_path / ".cache" / "fedapt"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 fma", False),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu avx512f avx512_bf16", True),
        ("fpu avx2 avx_ne_convert", True),
        ("fpu amx_bf16 amx_tile", True),
    ],
)
def test_bfloat16_by_the_flags_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, expected: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: Fast 9\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.processor_facts() == {"model name": "Fast 9", "flags": flags}
    assert machine.may_have_bfloat16() is expected


def test_a_system_without_flags_may_have_bfloat16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    assert machine.processor_facts() == {}
    assert machine.may_have_bfloat16()
