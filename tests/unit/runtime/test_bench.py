"""The bench counts what it says that it counts."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedapt_runtime import bench as bench_module
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.bench import bench
from fedapt_runtime.cli import main
from tests.support.manifests import make_manifest


class Clock:
    """A clock that moves only when told; each reading is exact."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class FakeBackend:
    """Takes 10 ms an image; every tenth run takes twice as long."""

    description = "a fake"
    name, compute = "onnxruntime", "fp32"
    in_flight, default_batch, task_size = 1, 32, 0
    manifest = make_manifest(("a", "b"), ("x",))

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.runs = 0

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        assert images.dtype == np.uint8
        self.clock.now += 0.010 * len(images) * (2 if self.runs and self.runs % 10 == 0 else 1)
        self.runs += 1
        rows = np.zeros((len(images), 2), np.float32)
        return Outputs(rows, rows[:, :1] + 1, rows)


def test_rates_and_percentiles_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(bench_module.time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(bench_module, "_time_decoding", lambda *_: 1.5)
    backend = FakeBackend(clock)
    report = bench([backend], [2], seconds=0.2199)
    (timing,) = report.backends[0].batches
    # the first run is not counted; ten follow, of 20 ms but for the tenth, which takes 40
    assert timing.runs == 10
    assert backend.runs == 12  # and one on the images that backends are compared on
    assert timing.images_per_second == pytest.approx(2 * 10 / 0.22)
    assert timing.p50_ms == pytest.approx(20)
    assert 20 < timing.p95_ms < timing.p99_ms < 40
    assert report.decode_ms == 1.5


def test_a_slow_model_is_still_run_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(bench_module.time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(bench_module, "_time_decoding", lambda *_: 1.5)
    assert bench([FakeBackend(clock)], [1], seconds=0).backends[0].batches[0].runs == 5


def test_batches_at_once_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "_time_decoding", lambda *_: 1.5)
    together = threading.Barrier(3)

    class Three(FakeBackend):
        in_flight = 3

        def run(self, images: NDArray[np.uint8]) -> Outputs:
            # all timed ones but the first come three at a time, or not at all
            if self.runs and len(images) == 2:
                together.wait(timeout=10)
            return super().run(images)

    (timed,) = bench([Three(Clock())], [2], seconds=0).backends
    (timing,) = timed.batches
    assert (timed.in_flight, timing.runs) == (3, 15)


class Other(FakeBackend):
    """Has the second class for every image, and features turned by 90 degrees."""

    description, compute = "another", "bf16"

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        outputs = super().run(images)
        outputs.logits[:] = [0, 1]
        return outputs._replace(features=outputs.logits * 7)


class One(FakeBackend):
    """Has the first class for every image."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        outputs = super().run(images)
        outputs.logits[:] = [1, 0]
        return outputs._replace(features=outputs.logits * 2)


def test_every_backend_is_compared_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "_time_decoding", lambda *_: 1.5)
    images = np.zeros((40, 2, 2, 3), np.uint8)
    backends = [kind(Clock()) for kind in (One, One, Other)]
    report = bench(backends, [2], seconds=0, images=images)
    assert [t.labels_changed for t in report.backends] == [0, 0, 40]
    assert [t.feature_difference for t in report.backends] == [0.0, 0.0, 1.0]
    assert [t.compute for t in report.backends] == ["fp32", "fp32", "bf16"]
    assert report.compared_on == "40 images"
    assert bench([One(Clock())], [2], seconds=0).compared_on == "32 images of noise"


def test_the_command(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(tiny_model), "--seconds", "0.01", "--batch-sizes", "1,3"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (timed,) = report["backends"]
    assert timed["backend"].startswith("ONNX Runtime")
    assert [t["batch"] for t in timed["batches"]] == [1, 3]
    assert timed["in_flight"] == 1
    assert main([*command, "--json", "--performance-hint", "throughput"]) == 0
    assert json.loads(capsys.readouterr().out)["backends"][0]["in_flight"] == os.cpu_count()
    assert report["decode_ms"] > 0
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "images/s" in shown
    assert "decoding a 640 x 480 JPEG" in shown


def test_backends_side_by_side(
    tiny_model: Path,
    tiny_images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setenv("FEDAPT_COMPUTE", "fp32")  # a processor with bfloat16 has one row more
    command = ["bench", str(tiny_model), "--seconds", "1e-9", "--batch-sizes", "2"]
    assert main([*command, "--backend", "onnxruntime,openvino", "--json"]) == 0
    timed = json.loads(capsys.readouterr().out)["backends"]
    assert [t["backend"].split()[0] for t in timed] == ["ONNX", "OpenVINO"]
    assert [t["batches"][0]["runs"] for t in timed] == [5, 5]
    assert [t["labels_changed"] for t in timed] == [0, 0]
    assert 0 < timed[1]["feature_difference"] < 1e-4
    folder = str(tiny_images / "photo")
    assert main([*command, "--backend", "onnxruntime,openvino", "--images", folder]) == 0
    assert "0 of 30 images differ in label from the first backend, unit" in capsys.readouterr().out
    assert main([*command, "--images", str(tiny_model)]) == 8
    assert "images to compare backends on: found no readable image" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([*command, "--backend", "openvino,abacus"])
    assert caught.value.code == 2
    assert "found abacus, expected auto or any of onnxruntime" in capsys.readouterr().err


def test_a_backend_is_gone_before_the_next_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "_time_decoding", lambda *_: 1.5)
    alive: list[weakref.ref[FakeBackend]] = []

    def load() -> Iterator[FakeBackend]:
        for _ in range(3):
            assert not any(ref() for ref in alive)
            backend = FakeBackend(Clock())
            alive.append(weakref.ref(backend))
            yield backend
            del backend

    assert len(bench(load(), [1], seconds=0).backends) == 3


def test_wrong_sizes_are_2(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", str(tiny_model), "--batch-sizes", "1,0"])
    assert caught.value.code == 2
    assert "expected a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf", "long"])
def test_seconds_that_are_none_are_2(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "model.onnx", f"--seconds={seconds}"])
    assert caught.value.code == 2
    expected = f"argument --seconds: found {seconds}, expected a number above 0"
    assert expected in capsys.readouterr().err
