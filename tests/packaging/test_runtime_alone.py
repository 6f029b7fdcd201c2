"""The runtime's wheel in a blank environment: it classifies without torch, fedapt and onnx."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.tiny import CLASSES

FORBIDDEN = ("torch", "torchvision", "open_clip", "onnx", "fedapt", "fedapt_export")


def check(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command far from the source tree; a failure shows what it printed."""
    done = run(*command, folder=folder)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that nothing appears in the source tree."""
    folder = tmp_path_factory.mktemp("build")
    ignore = shutil.ignore_patterns("__pycache__", "dist", "build", "*.egg-info")
    shutil.copytree(ROOT / "runtime", folder / "runtime", ignore=ignore)
    check(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "./runtime", "-w", "out", folder=folder
    )
    (path,) = (folder / "out").iterdir()
    return path


@dataclass(frozen=True)
class Alone:
    """A blank environment with the wheel and its extra `cpu`, and a folder to work in."""

    scripts: Path
    folder: Path

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return run(self.scripts / "fedapt-runtime", *arguments, folder=self.folder)

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        return run(self.scripts / "python", "-c", code, folder=self.folder)


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, wheel: Path, tiny_model: Path, tiny_images: Path
) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    check(sys.executable, "-m", "venv", "venv", folder=folder)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    check(scripts / "python", "-m", "pip", "install", "-q", f"{wheel}[cpu]", folder=folder)
    work = folder / "work"
    for label in CLASSES:
        (work / "photos" / label).mkdir(parents=True)
        for name in ("000.png", "001.png"):
            shutil.copy(tiny_images / "photo" / label / name, work / "photos" / label / name)
    (work / "photos" / "broken.jpg").write_text("text")
    shutil.copy(tiny_model, work / "model.onnx")
    return Alone(scripts, work)


def test_the_wheel_is_small_and_holds_the_package_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
    assert 10_000 < sum(sizes.values()) < 520_000
    needed = ("cli/app.py", "backends/ort.py", "py.typed", "vector_resize.ll")
    needed += ("page/page.js", "serve/page/main.js")
    assert {f"fedapt_runtime/{name}" for name in needed} <= set(sizes)
    tops = {name.split("/")[0] for name in sizes}
    assert tops == {"fedapt_runtime", "-".join(wheel.name.split("-")[:2]) + ".dist-info"}


def test_the_wheel_needs_numpy_and_pillow_and_leaves_the_rest_to_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    needs = metadata.get_all("Requires-Dist", [])
    assert sorted(n.split(">")[0] for n in needs if "extra" not in n) == ["numpy", "pillow"]
    extras: dict[str, set[str]] = {}
    for need in (n for n in needs if "extra" in n):
        name, extra = need.split(">")[0], need.split("extra == ")[1].strip("'\"")
        extras.setdefault(extra, set()).add(name)
    assert extras == {
        "cpu": {"onnxruntime"},
        "gpu": {"cuda-bindings", "onnxruntime-gpu[cuda,cudnn]"},
        "openvino": {"openvino"},
        "rtx": {"cuda-bindings", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"},
        "tensorrt": {"cuda-bindings", "tensorrt"},
        "ray": {"pyarrow", "ray[data]"},
        "parquet": {"pyarrow"},
        "vector": {"llvmlite"},
        "serve": {"h11", "prometheus-client", "python-multipart", "starlette", "uvicorn"},
    }
    assert "# fedapt-runtime" in metadata.get_payload()


def test_the_command_classifies(alone: Alone) -> None:
    done = alone.command("classify", "model.onnx", "photos", "--top-k", 1)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = ["photos/broken.jpg"]
    expected += [f"photos/{label}/{name}.png" for label in CLASSES for name in ("000", "001")]
    assert [row["path"] for row in rows] == expected
    assert "found not an image of a known format" in rows[0]["error"]
    classes = {label.replace("_", " ") for label in CLASSES}
    assert all(row["error"] is None and row["label"] in classes for row in rows[1:])
    assert "7 images in " in done.stderr
    assert "Warning" not in done.stderr


def test_the_module_runs_as_the_command_does(alone: Alone) -> None:
    done = run(
        alone.scripts / "python",
        "-m",
        "fedapt_runtime",
        "describe",
        "model.onnx",
        folder=alone.folder,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["domains"] == ["photo", "sketch"]
    assert alone.command("describe", "model.onnx").stdout == done.stdout


def test_python_classifies_without_torch_and_fedapt(alone: Alone) -> None:
    done = alone.python(
        "import importlib.util, json, sys\n"
        "from fedapt_runtime import Classifier\n"
        "rows = Classifier.load('model.onnx')(['photos/stripes/000.png', 'photos/broken.jpg'])\n"
        f"names = {FORBIDDEN!r} + ('numpy', 'onnxruntime')\n"
        "print(json.dumps({\n"
        "    'rows': [row.to_dict() for row in rows],\n"
        "    'loaded': [name for name in names if name in sys.modules],\n"
        "    'installed': [name for name in names if importlib.util.find_spec(name)],\n"
        "}))\n"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    good, bad = found["rows"]
    assert good["error"] is None
    assert sum(p for _, p in good["top_k"]) == pytest.approx(1.0, abs=1e-5)
    assert bad["label"] is None
    # the two that it does need show that the question is put in the right way
    assert found["loaded"] == found["installed"] == ["numpy", "onnxruntime"]


def test_the_answers_are_those_of_the_development_environment(
    alone: Alone, tiny_model: Path
) -> None:
    from fedapt_runtime import Classifier

    done = alone.command("classify", "model.onnx", "photos/stripes", "--device", "cpu")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    here = Classifier.load(tiny_model, device="cpu")([alone.folder / row["path"] for row in rows])
    assert len(here) == 2
    for row, prediction in zip(rows, here, strict=True):
        assert row["label"] == prediction.label
        assert dict(row["top_k"]) == pytest.approx(dict(prediction.top_k), abs=1e-5)


def test_without_onnxruntime_the_way_out_is_printed(alone: Alone) -> None:
    done = alone.python(
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "from fedapt_runtime.cli import main\n"
        "sys.exit(main(['classify', 'model.onnx', 'photos']))\n"
    )
    assert (done.returncode, done.stdout) == (9, "")
    assert "error: onnxruntime: found no usable ONNX Runtime (" in done.stderr
    assert "To do: pip install 'fedapt-runtime[cpu]' (or [gpu] where there" in done.stderr
    assert "Traceback" not in done.stderr
