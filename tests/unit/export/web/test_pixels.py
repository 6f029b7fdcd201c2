"""The page's preprocessing against the runtime's, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from fedapt_runtime.errors import ImageError
from fedapt_runtime.preprocess import Preprocessing
from tests.support.node import needs_node, run_module

pytestmark = needs_node

# older versions of Pillow resample columns first in images that shrink in height above all
ROWS_FIRST = int(PIL.__version__.split(".")[0]) >= 13
BODY = """
    const outs = [];
    let at = 0;
    for (const { width, height, preprocessing, nearest } of value) {
        const rgba = new Uint8ClampedArray(data.subarray(at, at + 4 * width * height));
        outs.push(module.prepare(rgba, width, height, preprocessing, nearest));
        at += 4 * width * height;
    }
    return Buffer.concat(outs);
"""


@dataclasses.dataclass
class Case:
    image: Image.Image
    preprocessing: Preprocessing

    def to_dict(self) -> dict[str, object]:
        width, height = self.image.size
        return {
            "width": width,
            "height": height,
            "preprocessing": self.preprocessing.to_dict(),
            "nearest": self.image.mode == "P",
        }


def preprocessing(interpolation: str = "bicubic", resize_mode: str = "shortest") -> Preprocessing:
    size = (64, 64) if resize_mode == "shortest" else (48, 64)
    return Preprocessing(size, (0, 0, 0), (1, 1, 1), interpolation, resize_mode)


def draw(mode: str, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "P":
        image = Image.fromarray(pixels[..., 0])
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    return Image.fromarray(pixels if mode == "RGBA" else pixels[..., :3])


def prepare(folder: Path, cases: list[Case]) -> list[np.ndarray]:
    raw = b"".join(np.asarray(case.image.convert("RGBA")).tobytes() for case in cases)
    made = run_module(folder, "pixels.js", BODY, [case.to_dict() for case in cases], raw)
    parts, at = [], 0
    for case in cases:
        height, width = case.preprocessing.size
        flat = np.frombuffer(made[at : at + 3 * height * width], np.uint8)
        parts.append(flat.reshape(height, width, 3))
        at += flat.size
    assert at == len(made)
    return parts


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_pixels_are_those_of_pillow(
    tmp_path: Path, mode: str, interpolation: str, resize_mode: str
) -> None:
    rng = np.random.default_rng(0)
    chosen = preprocessing(interpolation, resize_mode)
    sizes = [(64, 64), (63, 65), (65, 64), (31, 17), (17, 31), (300, 201), (201, 301), (129, 128)]
    sizes += [(90, 1), (640, 480), (64, 128), (128, 64), *map(tuple, rng.integers(20, 300, (8, 2)))]
    if ROWS_FIRST:
        sizes += [(1, 90), (100, 201), (100, 400)]
    cases = [Case(draw(mode, int(w), int(h), rng), chosen) for w, h in sizes]
    for case, made in zip(cases, prepare(tmp_path, cases), strict=True):
        expected = chosen.image_to_array(case.image)
        assert np.array_equal(made, expected), case.image.size


def test_a_wrong_filter_is_seen(tmp_path: Path) -> None:
    image = draw("RGB", 100, 90, np.random.default_rng(0))
    (made,) = prepare(tmp_path, [Case(image, preprocessing("bilinear"))])
    assert not np.array_equal(made, preprocessing("bicubic").image_to_array(image))


@pytest.mark.parametrize(
    ("size", "refused"), [((10_000, 10_000), False), ((10_000, 10_001), True), ((1, 90_000), True)]
)
def test_the_limit_of_pixels_is_the_runtimes(
    tmp_path: Path, size: tuple[int, int], refused: bool
) -> None:
    from fedapt_runtime.preprocess import MAX_PIXELS, _check_pixels

    chosen = preprocessing()
    if refused:
        with pytest.raises(ImageError) as caught:
            _check_pixels(size, chosen, "x", MAX_PIXELS)
        expected = caught.value.found.replace(",", "")
    else:
        _check_pixels(size, chosen, "x", MAX_PIXELS)
        expected = ""
    body = "return module.refuseSize(...value.size, value.preprocessing);"
    value = {"size": size, "preprocessing": chosen.to_dict()}
    found = run_module(tmp_path, "pixels.js", body, value).decode()
    assert found.replace(",", "") == expected
