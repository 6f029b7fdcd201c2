"""What is missing is named, with the line that brings it, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from fedapt.cli.app import main
from fedapt_export.doctor import examine
from fedapt_runtime import cli, doctor


def finding(name: str) -> doctor.Finding:
    (found,) = [f for f in examine() if f.name == name]
    return found


def test_what_is_here_is_told_with_its_version() -> None:
    for name, package in (("torch", "torch"), ("OpenCLIP", "open_clip_torch")):
        assert finding(name).is_there
        assert version(package) in finding(name).detail
    assert "CPU" in finding("ONNX Runtime").detail
    assert finding("lite").install == ""


def test_a_missing_package_is_told_with_the_line_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    found = finding("ONNX Runtime")
    assert not found.is_there
    assert "pip install 'fedapt-runtime[cpu]'" in found.install
    assert finding("demo").install == "pip install 'fedapt[demo]'"


def test_both_variants_of_onnxruntime_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedapt_runtime.backends.ort._find_folder", lambda _: "packages")
    found = finding("ONNX Runtime")
    assert not found.is_there
    assert "overwrite each other's files" in found.detail
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in found.install


def test_a_gpu_is_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert finding("NVIDIA GPU").detail == "nvidia-smi not found"
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    done = subprocess.CompletedProcess([], 0, stdout="NVIDIA L4, 8.9, 580.1\n", stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    assert finding("NVIDIA GPU").detail == "NVIDIA L4, 8.9, 580.1"

    def broken(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(doctor.subprocess, "run", broken)
    assert not finding("NVIDIA GPU").is_there


OF_THE_RUNTIME = [
    "NVIDIA GPU",
    "ONNX Runtime",
    "OpenVINO",
    "llvmlite",
    "TensorRT engines",
    "Ray",
    "Parquet",
]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    names = [f["name"] for f in json.loads(capsys.readouterr().out)]
    assert names == [
        *OF_THE_RUNTIME,
        "torch",
        "OpenCLIP",
        "lite",
        "TensorRT-RTX",
        "TensorRT",
        "transformers",
        "Flower",
        "pages",
        "demo",
    ]
    assert main(["doctor"]) == 0
    assert "ONNX Runtime" in capsys.readouterr().out


def test_the_runtimes_own_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [f["name"] for f in found]
    assert names == OF_THE_RUNTIME
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("ONNX Runtime     yes  ")
    assert version("onnxruntime") in lines[1]
