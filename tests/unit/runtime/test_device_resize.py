"""Resizing in a graph against Pillow. On the CPU here; twin: tests/gpu/test_device_resize.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedapt_runtime import Classifier, Manifest, Preprocessing
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.cli import main
from fedapt_runtime.device_resize import DeviceResizer
from fedapt_runtime.errors import RuntimeFailure
from fedapt_runtime.preprocess import MAX_CANVAS
from tests.support.manifests import make_manifest
from tests.support.resizing import SIZES, check_resizer, draw, make_preprocessing


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pixels_are_pillows(mode: str, interpolation: str) -> None:
    preprocessing = make_preprocessing(mode, interpolation)
    check_resizer(DeviceResizer(preprocessing, "cpu"), preprocessing)


def test_a_size_that_fits_is_left_alone() -> None:
    preprocessing = make_preprocessing()
    image = draw(56, 56)
    (found,) = DeviceResizer(preprocessing, "cpu").run([image])
    np.testing.assert_array_equal(found, image)


def test_neighbours_on_the_canvas_do_not_reach_an_image() -> None:
    resizer = DeviceResizer(make_preprocessing(), "cpu")
    image = draw(70, 90)
    (alone,) = resizer.run([image])
    small, large = np.zeros((60, 60, 3), np.uint8), np.full((300, 300, 3), 255, np.uint8)
    for others in ([small], [large], [large, small]):
        np.testing.assert_array_equal(resizer.run([*others, image])[-1], alone)


def test_without_cuda_it_is_refused() -> None:
    with pytest.raises(
        RuntimeFailure,
        match=r"resizing on the GPU: found an ONNX Runtime \S+ without CUDA; .*resize on the CPU",
    ):
        DeviceResizer(make_preprocessing())


class Keeps:
    """A backend that keeps what it is given."""

    name, compute = "onnxruntime", "fp32"
    in_flight, default_batch, task_size, description = 1, 4, 0, "keeps"

    def __init__(self, preprocessing: Preprocessing) -> None:
        manifest = vars(make_manifest(("a", "b"), ("x",))) | {"preprocessing": preprocessing}
        self.manifest = Manifest(**manifest)
        self.images: list[NDArray[np.uint8]] = []

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        self.images.extend(images)
        ones = np.ones((len(images), 1), np.float32)
        return Outputs(np.hstack([ones, 2 * ones]), ones, ones)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """RGB, grey, a palette, one too large for the canvas, and one that is none."""
    images = [Image.fromarray(draw(height, width)) for height, width in SIZES[:3]]
    images += [images[0].convert("L"), images[1].quantize(16)]
    images.append(images[0].resize((MAX_CANVAS + 10, 300)))
    paths = []
    for i, image in enumerate(images):
        paths.append(str(tmp_path / f"{i}.png"))
        image.save(paths[-1])
    (tmp_path / "bad.png").write_bytes(b"no image")
    return [*paths[:2], str(tmp_path / "bad.png"), *paths[2:]]


def test_a_classifier_with_it_gives_the_same_images_to_the_graph(files: list[str]) -> None:
    preprocessing = make_preprocessing()
    backend, reference = Keeps(preprocessing), Keeps(preprocessing)
    resizer = DeviceResizer(preprocessing, "cpu")
    rows = list(Classifier(backend).stream(files, resizer=resizer))
    assert rows == Classifier(reference)(files)
    assert [row.error is None for row in rows] == [True, True, False, True, True, True, True]
    assert len(backend.images) == len(reference.images) == 6
    for found, expected in zip(backend.images, reference.images, strict=True):
        assert np.abs(found.astype(int) - expected).max() <= 1
    for i in (4, 5):  # a palette, and one that is too large: Pillow's own
        np.testing.assert_array_equal(backend.images[i], reference.images[i])


def test_a_jpeg_beyond_the_canvas_is_decoded_at_a_fraction(tmp_path: Path) -> None:
    preprocessing = make_preprocessing()
    for side, expected in ((MAX_CANVAS, (MAX_CANVAS, 600, 3)), (2 * MAX_CANVAS, (256, 75, 3))):
        Image.new("RGB", (600, side)).save(tmp_path / "large.jpg")
        found = preprocessing.load(tmp_path / "large.jpg", resize=False)
        assert found.shape == expected


def test_the_command(
    tiny_model: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", str(tiny_model), files[0], "--preprocess", "device"]
    assert main(command) == 8
    assert "error: resizing on the GPU: found an ONNX Runtime" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([*command, "--ray"])
    assert caught.value.code == 2
    assert "--preprocess device uses this machine's GPU" in capsys.readouterr().err
