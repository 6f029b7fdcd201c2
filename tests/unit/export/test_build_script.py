"""build_engine.sh is run with stand-ins for trtexec and fedapt-runtime."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from fedapt_export.build_script import write_build_script
from fedapt_export.engine import EngineSettings
from tests.support.manifests import make_manifest

TRTEXEC = """#!/bin/sh
if [ "$1" = --help ]; then
  echo "&&&& RUNNING TensorRT.trtexec [TensorRT v@VERSION@] [b42] # trtexec --help"
  echo "@HELP@"
  exit 0
fi
printf '%s\\n' "$@" > options
for option; do case "$option" in --saveEngine=*) echo plan > "${option#*=}";; esac; done
exit @EXIT@
"""
RUNTIME = """#!/bin/sh
echo "$@" > checked
"""


def install(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def install_trtexec(folder: Path, version: str, help_text: str = "", code: int = 0) -> None:
    text = TRTEXEC.replace("@VERSION@", version).replace("@HELP@", help_text)
    install(folder / "bin", "trtexec", text.replace("@EXIT@", str(code)))


def write(folder: Path, name: str = "my model.onnx", **settings: object) -> Path:
    model = folder / name
    model.write_bytes(b"graph")
    chosen = EngineSettings("tensorrt", (), 1, 32, 128, **settings)  # type: ignore[arg-type]
    return write_build_script(model, make_manifest(("a",), ("x",)), chosen)


def run(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    path = f"{script.parent / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    return subprocess.run(
        ["bash", str(script), *options],
        env={"PATH": path},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("version", "help_text", "typed"),
    [("101603", "--stronglyTyped  Create a strongly typed network", True), ("110400", "", False)],
)
def test_the_engine_is_built_with_its_profile_and_checked(
    version: str, help_text: str, typed: bool, tmp_path: Path
) -> None:
    install_trtexec(tmp_path, version, help_text)
    install(tmp_path / "bin", "fedapt-runtime", RUNTIME)
    script = write(tmp_path, timing_cache=Path("/far/time s"), refit=True)
    assert script == tmp_path / "build_engine.sh"
    (tmp_path / "my model.engine.json").write_text("of an older engine")
    done = run(script, "--verbose")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "options").read_text().splitlines() == [
        "--onnx=my model.onnx",
        "--saveEngine=my model.engine.part",
        *(["--stronglyTyped"] if typed else []),
        "--noTF32",
        "--skipInference",
        "--minShapes=images:1x2x2x3",
        "--optShapes=images:32x2x2x3",
        "--maxShapes=images:128x2x2x3",
        "--refit",
        "--timingCacheFile=time s",
        "--verbose",
    ]
    expected = "check my model.engine --against my model.onnx\n"
    assert (tmp_path / "checked").read_text() == expected
    assert (tmp_path / "my model.engine").read_text() == "plan\n"
    assert not (tmp_path / "my model.engine.json").exists()
    assert not (tmp_path / "my model.engine.part").exists()


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    script = write(tmp_path, "model.onnx")
    done = run(script)
    assert done.returncode == 9
    assert done.stderr == "error: trtexec not found: install TensorRT 10 or 11, or add it to PATH\n"
    install_trtexec(tmp_path, "8601")
    done = run(script)
    assert done.returncode == 9
    assert done.stderr == "error: TensorRT 8601; 10 (100000) or newer is needed\n"
    install_trtexec(tmp_path, "110400")
    done = run(script)
    assert done.returncode == 9
    assert (
        "error: model.engine is built but not verified, and the runtime refuses it" in done.stderr
    )
    assert (tmp_path / "model.engine").is_file()


def test_another_model_is_refused_and_a_failed_build_leaves_the_older_engine(
    tmp_path: Path,
) -> None:
    install_trtexec(tmp_path, "110400", code=1)
    script = write(tmp_path, "model.onnx")
    (tmp_path / "model.engine").write_text("older")
    assert run(script).returncode == 1
    assert (tmp_path / "model.engine").read_text() == "older"
    (tmp_path / "model.onnx").write_bytes(b"another graph")
    done = run(script)
    assert done.returncode == 8
    assert "model.onnx is not the model that this script was written for" in done.stderr
