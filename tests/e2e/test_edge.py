"""examples/edge, built with CMake, against the Python runtime.

The library is that of the installed wheel, which has no headers: FEDAPT_ONNXRUNTIME_INCLUDE names a
folder with onnxruntime_c_api.h, such as `include` of a release of ONNX Runtime.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from fedapt_runtime import Classifier
from tests.support.paths import ROOT

INCLUDE = Path(os.environ.get("FEDAPT_ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"))
pytestmark = [
    pytest.mark.skipif(
        not (INCLUDE / "onnxruntime_c_api.h").is_file(),
        reason="no onnxruntime_c_api.h: set FEDAPT_ONNXRUNTIME_INCLUDE",
    ),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on this machine"),
]
MISSING = ("JPEG", "nlohmann_json")


def make_root(folder: Path) -> Path:
    """Headers and library where a release has them."""
    import onnxruntime

    capi = Path(onnxruntime.__file__).parent / "capi"
    (library,) = capi.glob("libonnxruntime.so.*")
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(INCLUDE)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edge")
    root = make_root(folder / "onnxruntime")
    command = ["cmake", "-S", str(ROOT / "examples" / "edge"), "-B", str(folder / "build")]
    made = subprocess.run(
        [*command, f"-DONNXRUNTIME_ROOT={root}"], capture_output=True, text=True, check=False
    )
    if made.returncode and any(name in made.stderr for name in MISSING):
        pytest.skip("no headers of libjpeg-turbo or nlohmann-json")
    assert made.returncode == 0, made.stderr
    built = subprocess.run(
        ["cmake", "--build", str(folder / "build")], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning" not in built.stderr
    return folder / "build" / "fedapt-edge"


@pytest.fixture(scope="module")
def photos(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEGs of several sizes, qualities and samplings; grey; turned by a camera."""
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(64, 64), (63, 65), (31, 17), (300, 201), (201, 301), (640, 480)]
    if int(PIL.__version__.split(".")[0]) >= 13:  # see pixels.cpp
        sizes.append((100, 400))
    sources = sorted(tiny_images.rglob("*.png"))
    for i, size in enumerate(sizes):
        image = Image.open(sources[7 * i]).resize(size)
        image.save(folder / f"{i}.jpg", quality=60 + 5 * i, subsampling=i % 3)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(noise[..., 0]).save(folder / "grey.jpg")
    Image.fromarray(noise).save(folder / "progressive.jpg", progressive=True)
    return sorted(folder.iterdir())


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, words)], capture_output=True, text=True, check=False
    )


def read_rows(program: Path, *words: object) -> list[dict[str, Any]]:
    done = run(program, *words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_answers_as_the_python_runtime_does(
    program: Path, tiny_model: Path, photos: list[Path]
) -> None:
    rows = read_rows(program, "--threads", 1, tiny_model, *photos)
    for row, prediction in zip(rows, Classifier.load(tiny_model)(photos), strict=True):
        expected = prediction.to_dict()
        assert row.keys() == expected.keys()
        assert [row[key] for key in ("path", "label", "routed_to", "error")] == [
            expected[key] for key in ("path", "label", "routed_to", "error")
        ]
        assert [name for name, _ in row["top_k"]] == [name for name, _ in expected["top_k"]]
        scores = [score for _, score in row["top_k"]]
        assert scores == pytest.approx([score for _, score in expected["top_k"]], abs=1e-5)
        assert row["score"] == scores[0]
        assert row["domain_weights"] == pytest.approx(expected["domain_weights"], abs=1e-5)


def test_a_file_that_cannot_be_read_is_a_row_with_its_error(
    program: Path, tiny_model: Path, photos: list[Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photos[0].read_bytes()[:-200])
    other = tmp_path / "other.png"
    Image.new("RGB", (8, 8)).save(other)
    cmyk = tmp_path / "cmyk.jpg"
    Image.new("CMYK", (8, 8)).save(cmyk)
    files = [cut, other, cmyk, tmp_path / "absent.jpg", photos[0]]
    rows = read_rows(program, tiny_model, *files)
    assert [row["path"] for row in rows] == [str(path) for path in files]
    assert [row["label"] for row in rows[:-1]] == [None] * 4
    assert "Premature end of JPEG file" in rows[0]["error"]
    assert "Not a JPEG file" in rows[1]["error"]
    assert rows[2]["error"] == "4 colour components, 1 or 3 are read"
    assert rows[3]["error"] == "no file that can be read"
    assert rows[4]["error"] is None


def test_what_is_no_model_of_fedapt_is_refused(
    program: Path, photos: list[Path], tmp_path: Path
) -> None:
    import onnx
    from onnx import TensorProto, helper

    other = tmp_path / "other.onnx"
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), other
    )
    done = run(program, other, photos[0])
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr == f"{other}: no model that `fedapt export` wrote\n"
    assert run(program, tmp_path / "absent.onnx", photos[0]).returncode == 8
    assert run(program, other).returncode == 2


def test_it_tells_its_time(program: Path, tiny_model: Path, photos: list[Path]) -> None:
    done = run(program, "--time", tiny_model, *photos)
    told = json.loads(done.stderr)
    assert told.keys() == {"load_s", "images_per_s"}
    assert told["images_per_s"] > 0
