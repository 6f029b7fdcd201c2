"""The vector code of the resize against Pillow's, bit for bit, and when which of both runs."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedapt_runtime import Preprocessing, preprocess, resize_weights, vector_resize
from fedapt_runtime.errors import MissingDependency, RuntimeFailure
from fedapt_runtime.vector_resize import Resize, VectorCode, load_vector_code

pytest.importorskip("llvmlite", reason="the vector code needs llvmlite")
if not hasattr(Image.Image, "__arrow_c_array__"):
    pytest.skip("Pillow before 11.2 does not lend its memory", allow_module_level=True)
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@pytest.fixture(scope="module")
def code() -> VectorCode:
    return load_vector_code()


def make(
    size: tuple[int, int] = (64, 64), interpolation: str = "bicubic", resize_mode: str = "shortest"
) -> Preprocessing:
    return Preprocessing(size, (0.0,) * 3, (1.0,) * 3, interpolation, resize_mode)


def draw(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels if mode == "RGB" else pixels[..., 0])


def ours(code: VectorCode, image: Image.Image, preprocessing: Preprocessing) -> np.ndarray | None:
    size = preprocessing.resized_size(*image.size)
    top, left = preprocessing.crop_offset(*size)
    height, width = preprocessing.size
    box = (left, top, left + width, top + height)
    return code.resize(image, size, box, preprocessing.interpolation)


def pillows(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """The transform as OpenCLIP has it: the whole image is resized, then cropped, then RGB."""
    size = preprocessing.resized_size(*image.size)
    top, left = preprocessing.crop_offset(*size)
    height, width = preprocessing.size
    resized = image.resize(size, RESAMPLING[preprocessing.interpolation])
    return np.asarray(resized.crop((left, top, left + width, top + height)).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("target", "resize_mode"),
    [((224, 224), "shortest"), ((61, 61), "shortest"), ((48, 83), "squash")],
)
def test_pixels_are_pillows(
    code: VectorCode, mode: str, interpolation: str, target: tuple[int, int], resize_mode: str
) -> None:
    preprocessing = make(target, interpolation, resize_mode)
    sizes = [(300, 300), (640, 480), (480, 640), (225, 223), (90, 61), (37, 41), (500, 9), (83, 40)]
    for size in sizes:
        image = draw(*size, mode)
        found = ours(code, image, preprocessing)
        assert found is not None, size
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        assert np.array_equal(found, pillows(image, preprocessing)), size


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    resize_mode=st.sampled_from(["shortest", "squash"]),
    mode=st.sampled_from(["RGB", "L"]),
)
def test_any_size_is_pillows_or_left_to_it(
    code: VectorCode,
    size: tuple[int, int],
    target: tuple[int, int],
    interpolation: str,
    resize_mode: str,
    mode: str,
) -> None:
    target = target if resize_mode == "squash" else (target[0], target[0])
    preprocessing = make(target, interpolation, resize_mode)
    image = draw(*size, mode)
    new_width, new_height = preprocessing.resized_size(*size)
    found = ours(code, image, preprocessing)
    if found is not None:
        assert np.array_equal(found, pillows(image, preprocessing))
    else:
        shrinks_in_height = size[1] - new_height > 2 * (size[0] - new_width)
        is_one_result = size[0] % 2 == 1 and size[0] <= 2 * 2 * max(1, size[0] / new_width) + 1
        assert shrinks_in_height or is_one_result


def test_extreme_values_are_clipped_as_pillow_clips_them(code: VectorCode) -> None:
    # cubic weights are negative in part: sums leave 0 to 255 at edges
    pixels = np.where(np.indices((90, 100)).sum(0) // 7 % 2, 255, 0).astype(np.uint8)
    image = Image.fromarray(np.repeat(pixels[..., None], 3, 2))
    found = ours(code, image, make())
    assert found is not None
    assert np.array_equal(found, pillows(image, make()))
    assert {0, 255} <= set(found.ravel().tolist())


def test_a_large_image_is_read_in_pieces(code: VectorCode) -> None:
    image = draw(2300, 2000)
    with pytest.raises(ValueError, match=r"memory|block"):
        image.__arrow_c_array__()
    found = ours(code, image, make())
    assert found is not None
    assert np.array_equal(found, pillows(image, make()))


@pytest.mark.parametrize("size", [(100, 201), (100, 400)])
def test_what_is_far_higher_than_wide_is_left_to_pillow(
    code: VectorCode, size: tuple[int, int]
) -> None:
    # which resamples its rows first as of version 13
    assert ours(code, draw(*size), make()) is None
    assert ours(code, draw(size[0], 200), make()) is not None


def test_an_odd_row_that_is_one_result_is_left_to_pillow(code: VectorCode) -> None:
    assert ours(code, draw(5, 5), make((1, 1))) is None
    assert ours(code, draw(6, 6), make((1, 1))) is not None


def test_without_llvmlite_pillow_resizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("llvmlite", "llvmlite.binding"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match="no usable llvmlite") as caught:
        load_vector_code()
    assert caught.value.next_step == "pip install 'fedapt-runtime[vector]'"
    monkeypatch.setattr(vector_resize, "LOAD_SECONDS", 0.0)
    resize = Resize()
    monkeypatch.setattr(preprocess, "RESIZE", resize)
    for image in (draw(90, 80), draw(80, 90)):
        assert np.array_equal(make().image_to_array(image), pillows(image, make()))
        assert resize.try_vector(image, (40, 40), (0, 0, 40, 40), "bicubic") is None


def test_another_pillow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize_weights, "_cubic", lambda d: np.maximum(2 - d, 0))
    resize_weights.plan_resize.cache_clear()
    with pytest.raises(RuntimeFailure, match="other pixels than those of Pillow"):
        load_vector_code()
    resize_weights.plan_resize.cache_clear()


def test_a_processor_without_a_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def initialize_native_target(self) -> None:
            raise RuntimeError("no memory may be executed")

    monkeypatch.setattr(vector_resize, "_import_llvmlite", Broken)
    with pytest.raises(RuntimeFailure, match="RuntimeError: no memory may be executed"):
        load_vector_code()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, code: VectorCode) -> list[int]:
    """Gets an entry for each time that the vector code is loaded."""
    entries: list[int] = []

    def load() -> VectorCode:
        entries.append(threading.get_ident())
        return code

    monkeypatch.setattr(vector_resize, "load_vector_code", load)
    return entries


def test_vector_code_follows_once_pillow_has_cost_as_much(
    monkeypatch: pytest.MonkeyPatch, loads: list[int]
) -> None:
    clock = iter([0.0, 0.06, 1.0, 1.03, 2.0, 2.02])  # 0.06, 0.03 and 0.02 s: 0.11 of 0.1
    monkeypatch.setattr(vector_resize.time, "thread_time", lambda: next(clock))
    resize = Resize()
    monkeypatch.setattr(preprocess, "RESIZE", resize)
    image = draw(90, 80)
    for turn in range(5):
        assert np.array_equal(make().image_to_array(image), pillows(image, make()))
        assert len(loads) == (turn >= 2), turn  # and the clock is not read again
    assert next(clock, None) is None


def test_other_modes_do_not_count(monkeypatch: pytest.MonkeyPatch, loads: list[int]) -> None:
    monkeypatch.setattr(vector_resize, "LOAD_SECONDS", 0.0)
    monkeypatch.setattr(preprocess, "RESIZE", Resize())
    make().image_to_array(draw(90, 80).convert("RGBA"))
    make().image_to_array(draw(64, 64))
    assert loads == []
    make().image_to_array(draw(90, 80))
    assert len(loads) == 1


def test_a_thread_does_not_wait_for_the_one_that_loads(
    monkeypatch: pytest.MonkeyPatch, code: VectorCode
) -> None:
    loading, proceed = threading.Event(), threading.Event()

    def load() -> VectorCode:
        loading.set()
        assert proceed.wait(60)
        return code

    monkeypatch.setattr(vector_resize, "load_vector_code", load)
    monkeypatch.setattr(vector_resize, "LOAD_SECONDS", 0.0)
    resize = Resize()
    monkeypatch.setattr(preprocess, "RESIZE", resize)
    image = draw(90, 80)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(make().image_to_array, image)
        assert loading.wait(60)
        second = make().image_to_array(image)
        assert resize._code is None
        proceed.set()
        assert np.array_equal(first.result(), second)
    assert resize._code is code


def test_threads_share_the_code(monkeypatch: pytest.MonkeyPatch, code: VectorCode) -> None:
    monkeypatch.setattr(preprocess, "RESIZE", Resize.always(code))
    images = [draw(width, 70) for width in range(70, 110)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(make().image_to_array, images * 3))
    for image, array in zip(images * 3, found, strict=True):
        assert np.array_equal(array, pillows(image, make()))


def test_nothing_is_imported_before_it_is_needed() -> None:
    script = """
import sys
import numpy as np
from PIL import Image
from fedapt_runtime import Preprocessing
made = Preprocessing((4, 4), (0.0,) * 3, (1.0,) * 3).image_to_array(Image.new("RGB", (9, 8)))
print(made.shape, "llvmlite" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(4, 4, 3) False"


def test_a_damaged_memory_layout_is_left_to_pillow(
    monkeypatch: pytest.MonkeyPatch, code: VectorCode
) -> None:
    def refuse(image: Image.Image) -> Any:
        raise ValueError("the memory is in several blocks")

    monkeypatch.setattr(vector_resize, "_pixels_of", refuse)
    assert ours(code, draw(90, 80), make()) is None
