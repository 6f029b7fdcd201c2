"""Fixtures that several test folders use."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

# tests that run side by side share the cores, with the processes that they start: before torch
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

from tests.support.tiny import write_tiny_clip, write_tiny_images

# a shell that runs the tests in the background has Ctrl-C ignored, in every process that they start
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of a test reaches the user's cache, or depends on it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDAPT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny CLIP."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains, three classes, ten images each. Not to be changed."""
    return write_tiny_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="session")
def tiny_backbone(tiny_clip: Path):
    """The tiny CLIP, loaded."""
    from fedapt.model.backbone import load_backbone

    return load_backbone(str(tiny_clip))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, tiny_images: Path) -> Path:
    """A run folder: three rounds of FedAPT with the tiny CLIP on the tiny images."""
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
    out = tmp_path_factory.mktemp("runs") / "tiny"
    train(config, out, resume=False, device="cpu", reporter=Reporter())
    return out


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """The tiny run as a fused ONNX file."""
    from tests.support.fusing import export_run

    out = tmp_path_factory.mktemp("model") / "model.onnx"
    export_run(tiny_run, out)
    return out
