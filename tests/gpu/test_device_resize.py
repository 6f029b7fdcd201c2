"""Resizing on a GPU gives Pillow's pixels. Needs onnxruntime-gpu, and no torch."""

from __future__ import annotations

import pytest

from fedapt_runtime.backends.ort import PROVIDERS, import_onnxruntime
from fedapt_runtime.device_resize import DeviceResizer
from fedapt_runtime.errors import ReportedError
from tests.support.resizing import check_resizer, make_preprocessing

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pixels_are_pillows(mode: str, interpolation: str) -> None:
    if PROVIDERS["cuda"] not in import_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider: install fedapt-runtime[gpu]")
    preprocessing = make_preprocessing(mode, interpolation)
    try:
        resizer = DeviceResizer(preprocessing)
    except ReportedError as error:
        pytest.skip(f"ONNX Runtime's CUDA provider does not start: {error.found}")
    check_resizer(resizer, preprocessing)
