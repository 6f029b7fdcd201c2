"""Jobs on a local Ray cluster give the rows of one process, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedapt_runtime import Classifier
from fedapt_runtime.batch import classify_files
from fedapt_runtime.cli import main
from fedapt_runtime.errors import InputError, MissingDependency
from fedapt_runtime.journal import part_path
from fedapt_runtime.options import ClassifyOptions, LoadOptions
from fedapt_runtime.ray_runner import (
    RaySettings,
    _decode,
    _decode_on_cpu,
    _share_cluster,
    _unpack,
    predict_on_ray,
)
from fedapt_runtime.sources import find_images

ray = pytest.importorskip("ray", reason="Ray is not installed")

# Ray and what it brings leave sockets and files to the end of the process, and use older names
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Four CPUs, as Ray counts them: one for two models, the others decode side by side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path) -> list[str]:
    """Sixty paths: good ones, a broken one, a missing one, and one with an odd name."""
    folder = tmp_path_factory.mktemp("ray images")
    odd = folder / os.fsdecode(b"caf\xe9 \xf0\x9f\x90\xbb.png")
    odd.write_bytes((tiny_images / "sketch" / "stripes" / "003.png").read_bytes())
    (folder / "broken.png").write_text("text")
    good = [str(path) for path in sorted(tiny_images.glob("*/*/*.png"))][:57]
    return [*good[:10], str(folder / "broken.png"), str(odd), *good[10:], str(folder / "none.png")]


def run_locally(model: Path, images: list[str], **options: Any) -> list[dict[str, Any]]:
    classifier = Classifier.load(model, device="cpu")
    return [json.loads(json.dumps(p.to_dict())) for p in classifier.stream(images, **options)]


def run_on_ray(
    model: Path, images: Iterator[str] | list[str], **options: Any
) -> Iterator[dict[str, Any]]:
    preprocessing = Classifier.load(model, device="cpu").manifest.preprocessing
    settings, load, top_k = RaySettings(2), LoadOptions(device="cpu"), options.pop("top_k", 5)
    return predict_on_ray(
        model, images, preprocessing, settings, load, ClassifyOptions(top_k), **options
    )


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a["label"], a["routed_to"], a["error"]) == (b["label"], b["routed_to"], b["error"])
        assert dict(a["top_k"]) == pytest.approx(dict(b["top_k"]), abs=1e-6)
        assert a["domain_weights"] == pytest.approx(b["domain_weights"], abs=1e-6)


def test_the_rows_are_those_of_one_process(
    cluster: None, tiny_model: Path, images: list[str], slow_images: list[str]
) -> None:
    paths = slow_images[:7] + images  # the first block is done long after the second
    found = list(run_on_ray(tiny_model, iter(paths), task_size=7, top_k=2))
    expected = run_locally(tiny_model, paths, batch_size=7, top_k=2)
    assert len(found) == 67
    assert_same(found, expected)
    assert [row["error"] is None for row in found].count(False) == 2
    # a task that a worker cuts into several batches
    assert_same(list(run_on_ray(tiny_model, paths, task_size=40, top_k=2)), expected)


def processes(title: bytes) -> list[int]:
    """Processes of Ray whose title begins so, and that descend from this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(title) and descends(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended
    return found


def descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def kill_one(title: bytes, over: Event) -> bool:
    """Kill the first process of this title: a worker has its task's only while it runs."""
    while not over.wait(0.01):
        for pid in processes(title)[:1]:
            with suppress(ProcessLookupError):  # it has ended: the next one
                os.kill(pid, signal.SIGKILL)
                return True
    return False


@pytest.fixture(scope="module")
def slow_images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Sixty paths that take some seconds to decode."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("slow")
    for i in range(4):
        pixels = rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)
        big = Image.fromarray(pixels).resize((1600, 1600))
        big.save(folder / f"{i}.png", compress_level=1)
    return [str(folder / f"{i % 4}.png") for i in range(60)]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc on this system")
def test_killed_workers_lose_nothing(
    cluster: None, tiny_model: Path, slow_images: list[str]
) -> None:
    over = Event()
    paths = 3 * slow_images
    with ThreadPoolExecutor(1) as killers:
        killed = killers.submit(kill_one, b"ray::MapWorker(MapBatches(_Worker))", over)
        try:
            rows = list(run_on_ray(tiny_model, paths, task_size=4))
        finally:
            over.set()
    assert killed.result(), "nobody was killed: the test proves nothing"
    assert_same(rows, run_locally(tiny_model, paths, batch_size=4))


def test_a_killed_driver_loses_nothing(
    tiny_model: Path, slow_images: list[str], tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(slow_images))
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "fedapt_runtime", "classify", str(tiny_model), str(names)]
    command += ["--out", str(out), "--ray", "--workers", "2", "--batch-size", "4"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
        deadline = time.monotonic() + 120
        # the header and some rows
        while not part_path(out).exists() or len(part_path(out).read_bytes().splitlines()) < 9:
            assert driver.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.kill()
        driver.wait()
    assert not out.exists()
    done = subprocess.run(
        [*command, "--resume", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    summary = json.loads(done.stdout)
    assert summary["images"] == 60
    assert 0 < summary["resumed"] < 60
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert_same(rows, run_locally(tiny_model, slow_images, batch_size=4))
    assert "images in" in done.stderr.splitlines()[-1]
    assert "WARNING" not in done.stderr


def test_the_command_takes_a_table_of_paths_and_writes_one(
    cluster: None, tiny_model: Path, images: list[str], tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    names = [name for name in images if name.isascii()][:20]
    table = tmp_path / "names.parquet"
    parquet.write_table(pyarrow.table({"path": names, "more": list(range(20))}), table)
    command = ["classify", str(tiny_model), str(table), "--device", "cpu", "--out"]
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    assert main([*command, str(here)]) == 0
    assert main([*command, str(there), "--ray", "--workers", "2"]) == 0
    found, expected = (parquet.read_table(path).to_pylist() for path in (there, here))
    assert [row["path"] for row in found] == names
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["error"] for row in found] == [row["error"] for row in expected]


def test_images_that_only_the_driver_has_are_refused(
    cluster: None, tiny_model: Path, images: list[str], tmp_path: Path
) -> None:
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        stream.write(images[0], "a.png")
    with pytest.raises(InputError, match=r"in\.zip::a\.png: found an image in an archive"):
        list(run_on_ray(tiny_model, find_images([archive])))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="#0: found an array; expected paths"):
        list(run_on_ray(tiny_model, [np.zeros((4, 4, 3), np.uint8)]))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("cpus", "gpus", "settings", "expected"),
    [
        (8, 0, RaySettings(), (8, 1.0)),
        (8, 0, RaySettings(workers=2), (2, 1.0)),
        (1, 0, RaySettings(), (1, 1.0)),
        (2, 0, RaySettings(workers=4), (4, 0.5)),
        (8, 2, RaySettings(gpus=1), (2, 0.0)),
        (8, 2, RaySettings(gpus=0.5), (4, 0.0)),
        (8, 2, RaySettings(workers=3, gpus=0.5), (3, 0.0)),
    ],
)
def test_how_a_cluster_is_shared(
    cpus: int, gpus: int, settings: RaySettings, expected: tuple[int, float]
) -> None:
    assert _share_cluster({"CPU": cpus, "GPU": gpus}, settings) == expected


def test_pixels_and_errors_reach_a_gpu_worker(images: list[str], tiny_model: Path) -> None:
    preprocessing = Classifier.load(tiny_model, device="cpu").preprocessing()
    names = [os.fsencode(path) for path in [*images[:4], "caf\udce9.png"]]
    sent = _decode_on_cpu({"name": names}, preprocessing, fast=False)
    received = _unpack(sent, preprocessing)
    for got, expected in zip(received, _decode(names, preprocessing, fast=False), strict=True):
        assert got.name == expected.name
        assert str(got.error) == str(expected.error)
        assert (got.pixels is None) == (expected.pixels is None) == (expected.error is not None)
        if expected.pixels is not None:
            np.testing.assert_array_equal(np.asarray(got.pixels), expected.pixels)


def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="found 3 workers with 1 GPUs each on 2 GPUs; expected"):
        _share_cluster({"CPU": 8, "GPU": 2}, RaySettings(workers=3, gpus=1))
    with pytest.raises(InputError, match=r"found 1 workers with 0\.5 GPUs each on 0 GPUs"):
        _share_cluster({"CPU": 8}, RaySettings(gpus=0.5))


def test_without_ray_the_line_that_brings_it_is_told(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fedapt-runtime\[ray\]'"):
        list(run_on_ray(tiny_model, ["a.png"]))


def test_a_failed_job_keeps_its_rows(
    cluster: None, tiny_model: Path, images: list[str], tmp_path: Path
) -> None:
    classifier = Classifier.load(tiny_model, device="cpu")
    out = tmp_path / "rows.jsonl"

    def names() -> Iterator[str]:
        yield from images

    def stop(summary: object) -> None:
        raise KeyboardInterrupt

    def runner(rest: Any) -> Iterator[dict[str, Any]]:
        return run_on_ray(tiny_model, rest)

    with pytest.raises(KeyboardInterrupt):
        classify_files(classifier, names(), out, progress=stop, runner=runner)
    assert part_path(out).is_file()
    summary = classify_files(classifier, names(), out, runner=runner, resume=True)
    assert (summary.images, summary.resumed) == (60, 1)
