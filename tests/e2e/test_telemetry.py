"""Nothing is told to anyone: no file appears in an empty home, and no connection is tried."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.support.no_network import IS_HERE, forbid_network

pytestmark = pytest.mark.skipif(not IS_HERE, reason="seccomp is Linux's, on x86_64 and aarch64")

_TRAIN_AND_EXPORT = """
import sys
from fedapt.cli.app import main
images, clip, out = sys.argv[1:]
train = ["train", "--data", images, "--model", clip, "--out", out + "/run", "--rounds", "1"]
assert main([*train, "--batch-size", "8", "--context-length", "4"]) == 0
for precision in ("fp32", "int8"):
    name = out + "/" + precision + ".onnx"
    export = ["export", out + "/run/checkpoint.safetensors", "--out", name, "--force"]
    assert main([*export, "--precision", precision, "--max-disagreement", "1"]) == 0
"""


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in an empty home and without a network; a cache is elsewhere, as asked for."""
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and "XDG" not in k}
    return subprocess.run(
        [sys.executable, *arguments],
        env=kept | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        preexec_fn=forbid_network,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def found(home: Path) -> list[str]:
    return [str(path) for path in home.rglob("*")]


def test_this_test_sees_a_connection(tmp_path: Path) -> None:
    code = "import socket; socket.socket(socket.AF_UNIX); socket.socket(socket.{})"
    for family in ("AF_INET", "AF_INET6"):
        done = run(tmp_path / family, "-c", code.format(family))
        assert done.returncode == -signal.SIGSYS, done.stderr


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_classify(tiny_model: Path, tiny_images: Path, tmp_path: Path, backend: str) -> None:
    if backend == "openvino" and not list(distributions(name="openvino-telemetry")):
        pytest.skip("OpenVINO's telemetry is not installed")
    classify = ("-m", "fedapt_runtime", "classify", "--backend", backend, str(tiny_model))
    # OpenVINO's telemetry is off in a CI job, where this test has to see it
    environment = {"CI": "", "TF_BUILD": "", "JENKINS_URL": ""}
    images = str(tiny_images / "photo" / "stripes")
    done = run(tmp_path / "home", *classify, images, **environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10
    assert found(tmp_path / "home") == []


def test_train_and_export(tiny_clip: Path, tiny_images: Path, tmp_path: Path) -> None:
    arguments = ("-c", _TRAIN_AND_EXPORT, str(tiny_images), str(tiny_clip), str(tmp_path))
    done = run(tmp_path / "home", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "int8.onnx").is_file()
    assert found(tmp_path / "home") == []


def test_a_download_tells_no_versions_of_other_packages() -> None:
    code = (
        "from fedapt.model.open_clip_import import import_open_clip\n"
        "import_open_clip()\n"
        "from huggingface_hub import constants\n"
        "print(constants.HF_HUB_DISABLE_TELEMETRY)\n"
    )
    kept = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr
