"""Fixtures that several test folders use."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

# tests that run side by side share the cores, with the processes that they start: before torch
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

from tests.support.tiny import write_tiny_clip, write_tiny_images

# OpenVINO's import tells its maker; tests import it by themselves too
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

# a shell that runs the tests in the background has Ctrl-C ignored, in every process that they start
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def workers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of one test run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def build_once(path: Path, build: Callable[[Path], object]) -> Path:
    """`path`, built by the first worker that asks for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = path.parent / f"{path.name}.built"
    with (path.parent / f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            build(path)
            done.touch()
    return path


@pytest.fixture(autouse=True, scope="session")
def private_cache(workers_folder: Path) -> Iterator[Path]:
    """Nothing of a test reaches the user's cache or depends on it, or on a measurement."""
    folder = workers_folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDAPT_CACHE", str(folder))
        patch.setenv("FEDAPT_BACKEND", "onnxruntime")  # else every model's first load measures
        yield folder


@pytest.fixture(scope="session")
def tiny_clip(workers_folder: Path) -> Path:
    """A folder with a tiny CLIP. Not to be changed."""
    return build_once(workers_folder / "clip" / "tiny", write_tiny_clip)


@pytest.fixture(scope="session")
def tiny_images(workers_folder: Path) -> Path:
    """Two domains, three classes, ten images each. Not to be changed."""
    return build_once(workers_folder / "images" / "data", write_tiny_images)


@pytest.fixture(scope="session")
def tiny_backbone(tiny_clip: Path):
    """The tiny CLIP, loaded."""
    from fedapt.model.backbone import load_backbone

    return load_backbone(str(tiny_clip))


@pytest.fixture(scope="session")
def tiny_run(workers_folder: Path, tiny_clip: Path, tiny_images: Path) -> Path:
    """A run folder: three rounds of FedAPT with the tiny CLIP. Not to be changed."""
    from fedapt.core.config import read_config
    from fedapt.core.report import Reporter
    from fedapt.run.train import train

    config = read_config(
        None,
        [],
        {
            "data.root": str(tiny_images),
            "model.name": str(tiny_clip),
            "train.rounds": 3,
            "train.lr": 0.1,
            "train.batch_size": 8,
            "prompt.context_length": 4,
        },
    )

    def build(out: Path) -> None:
        train(config, out, resume=False, device="cpu", reporter=Reporter())

    return build_once(workers_folder / "runs" / "tiny", build)


@pytest.fixture(scope="session")
def tiny_model(workers_folder: Path, tiny_run: Path) -> Path:
    """The tiny run as a fused ONNX file. Not to be changed."""
    from tests.support.fusing import export_run

    return build_once(
        workers_folder / "model" / "model.onnx", lambda out: export_run(tiny_run, out)
    )
