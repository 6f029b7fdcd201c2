"""Resizing and cropping on a GPU, so that the cores of the CPU only decode.

One canvas holds a batch of decoded images of different sizes. A small ONNX graph resamples each
image as Pillow does; its output is the input of every backend. This package contains one graph for
each interpolation. The graphs do not depend on a model.

Source: `fedapt_export.resize_graph`, which writes the graphs; Pillow, src/libImaging/Resample.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.ort import PROVIDERS, import_onnxruntime, open_session
from fedapt_runtime.errors import RuntimeFailure
from fedapt_runtime.preprocess import Preprocessing

_STEP = 64  # pixels: canvas sizes are multiples, so that few different shapes occur


class DeviceResizer:
    """Resizes and crops batches. Calls from several threads are safe.

    Args:
        preprocessing: preprocessing of the model.
        device: `cuda`, or `cpu`, where Pillow is faster.

    Raises:
        MissingDependency: ONNX Runtime is missing.
        RuntimeFailure: the device is not available.
    """

    def __init__(self, preprocessing: Preprocessing, device: str = "cuda") -> None:
        onnxruntime = import_onnxruntime()
        if PROVIDERS[device] not in onnxruntime.get_available_providers():
            raise RuntimeFailure(
                where="resizing on the GPU",
                found=f"an ONNX Runtime {onnxruntime.__version__} without CUDA",
                expected="onnxruntime-gpu, which resizes for every backend",
                next_step="install 'fedapt-runtime[gpu]', or resize on the CPU (exact or fast)",
            )
        path = Path(__file__).with_name(f"resize_{preprocessing.interpolation}.onnx")
        self._session = open_session(onnxruntime, str(path), device, path)
        self._preprocessing = preprocessing

    def run(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Resize and crop a batch.

        Args:
            images: uint8 RGB [h, w, 3], of any sizes; at least one.

        Returns:
            uint8 [batch, height, width, 3], the size that the model takes.
        """
        sizes = np.array([image.shape[:2] for image in images])
        rows, columns = (-(-int(side) // _STEP) * _STEP for side in sizes.max(axis=0))
        canvas = np.zeros((len(images), rows, columns, 3), np.uint8)
        for place, image in zip(canvas, images, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
        resized = [self._preprocessing.resized_size(w, h) for h, w in sizes.tolist()]
        scales = sizes / np.array([(height, width) for width, height in resized])
        offsets = np.array([self._preprocessing.crop_offset(*size) for size in resized])
        height, width = self._preprocessing.size
        feeds = {
            "canvas": canvas,
            "sizes": sizes.astype(np.float32),
            "scales": scales.astype(np.float32),
            "offsets": offsets.astype(np.float32),
            "height": np.array(height, np.int64),
            "width": np.array(width, np.int64),
        }
        (result,) = self._session.run(["images"], feeds)
        return np.asarray(result, np.uint8)
