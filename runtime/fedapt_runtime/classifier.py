"""The classifier: images in, predictions out."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedapt_runtime.backends.base import Backend, Outputs
from fedapt_runtime.backends.choose import load_backend
from fedapt_runtime.device_resize import DeviceResizer
from fedapt_runtime.errors import InputError
from fedapt_runtime.machine import usable_cores
from fedapt_runtime.manifest import Manifest
from fedapt_runtime.options import ClassifyOptions, LoadOptions
from fedapt_runtime.pipeline import Decoded, Image, decode_ahead, split_batches
from fedapt_runtime.prediction import Prediction, read_outputs
from fedapt_runtime.preprocess import Preprocessing
from fedapt_runtime.unknown import UnknownSignal, read_signal


class Classifier:
    """A fused model that classifies batches. Calls from several threads are safe.

    Build one with `Classifier.load`. Calling it takes paths or arrays and returns a prediction for
    each, in order; `stream` does the same without holding all of them.

    Examples:
        >>> classifier = fedapt.Classifier.load("model.onnx")
        >>> (prediction,) = classifier(["images/photo/stripes/000.png"])
        >>> prediction.label in classifier.manifest.classes
        True
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @classmethod
    def load(
        cls,
        path: str | Path,
        backend: str = "auto",
        device: str = "auto",
        head: str | Path | None = None,
        threads: int = 0,
        performance_hint: str = "latency",
        compute: str = "auto",
    ) -> Classifier:
        """Load a model written by `fedapt export`.

        Args:
            path: the .onnx file, or an .engine file with its .engine.json beside it.
            backend: `onnxruntime`, `openvino`, `tensorrt-ep` (TensorRT inside ONNX Runtime) or
                `tensorrt` (TensorRT engines); `auto` takes the fastest that is installed, measured
                at the first load on a machine, and `description` says what and why.
            device: `auto`, `cpu` or `cuda`.
            head: a head that `fedapt export --head-only` wrote, in place of the model's own.
            threads: threads of inference on a CPU; 0 takes every core.
            performance_hint: on a CPU, `latency` puts every thread on one batch, for the shortest
                time to its result; `throughput` gives each thread a batch of its own, for the most
                images per second.
            compute: `fp32` multiplies in the types of the graph; `bf16` multiplies in bfloat16
                what the graph has in float32, where backend and processor can; `auto` takes `bf16`
                where it is faster and changed no label in the export.

        `FEDAPT_BACKEND` and `FEDAPT_COMPUTE` in the environment stand for `auto`.

        Raises:
            ModelFileError: missing, damaged, not a fedapt model, or a head of another CLIP.
            MissingDependency: the backend's package is missing, or installed twice.
            RuntimeFailure: the backend or the device is not available, or does not fit the file.
        """
        options = LoadOptions(backend, device, head, threads, performance_hint, compute)
        return cls(load_backend(path, options))

    @property
    def backend(self) -> Backend:
        """The backend that runs the graph."""
        return self._backend

    @property
    def manifest(self) -> Manifest:
        """Classes, domains, preprocessing and origin of the model."""
        return self._backend.manifest

    def preprocessing(self, depth: str | None = None) -> Preprocessing:
        """The model's preprocessing, or the same with another depth."""
        plain = self.manifest.preprocessing
        return plain if depth is None else dataclasses.replace(plain, depth=depth)

    @property
    def description(self) -> str:
        """Backend, version and device in a few words."""
        return self._backend.description

    @property
    def ran_on(self) -> dict[str, str]:
        """Backend and compute precision, as `load` takes them."""
        return {"backend": self._backend.name, "compute": self._backend.compute}

    def __call__(
        self, images: Iterable[Image], *, batch_size: int | None = None, top_k: int = 5
    ) -> list[Prediction]:
        """Classify paths or arrays; see `stream`."""
        return list(self.stream(images, batch_size=batch_size, top_k=top_k))

    def stream(
        self,
        images: Iterable[Image],
        *,
        batch_size: int | None = None,
        top_k: int = 5,
        workers: int | None = None,
        fast: bool = False,
        depth: str | None = None,
        flag_unknown: bool = False,
        resizer: DeviceResizer | None = None,
    ) -> Iterator[Prediction]:
        """Yield one prediction per image, in order, decoding in threads beside inference.

        Args:
            images: paths of image files, images in archives (`sources.find_images`), or uint8 RGB
                arrays [height, width, 3] of any size.
            batch_size: images per run of the graph; by default what suits the backend.
            top_k: how many classes to report.
            workers: decoding threads; by default one per core.
            fast: decode large JPEGs at a fraction of their size; no longer bit-exact.
            depth: depth of grey images beyond 8 bits, see `Preprocessing`; by default the model's.
            flag_unknown: also say how unlike the known domains each image is.
            resizer: resizes and crops on a GPU; decoding threads then only decode.

        Yields:
            Predictions; an image that cannot be read yields one whose `error` says why.

        Raises:
            InputError: an array that is no uint8 RGB image, or a size below 1.
            RuntimeFailure: `flag_unknown` with a model that has no such signal.
        """
        return self.run(
            images,
            ClassifyOptions(top_k, fast, depth, flag_unknown),
            batch_size=batch_size,
            workers=workers,
            resizer=resizer,
        )

    def run(
        self,
        images: Iterable[Image],
        options: ClassifyOptions,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        resizer: DeviceResizer | None = None,
    ) -> Iterator[Prediction]:
        """`stream`, with the options of a row as one object."""
        if isinstance(images, str | os.PathLike):
            images = [images]  # one path is an iterable of characters, which nobody means
        batch_size = self._backend.default_batch if batch_size is None else batch_size
        if batch_size < 1 or options.top_k < 1:
            raise InputError(
                where="batch_size or top_k",
                found=f"a batch size of {batch_size} and a top-k of {options.top_k}",
                expected="whole numbers of at least 1",
                next_step="pass larger numbers",
            )
        if options.flag_unknown:
            _ = self._signal  # a model without one is refused before any work
        in_flight, workers = self._backend.in_flight, workers or usable_cores()
        ahead = max(4 * batch_size, 2 * workers)
        decoded = decode_ahead(
            images,
            self.preprocessing(options.depth),
            workers,
            ahead,
            options.fast,
            resize=resizer is None,
        )
        pool = ThreadPoolExecutor(in_flight, thread_name_prefix="fedapt-infer")
        pending: deque[Future[list[Prediction]]] = deque()
        try:
            for batch in split_batches(decoded, batch_size):
                pending.append(pool.submit(self.classify, batch, options, resizer))
                if len(pending) > in_flight:  # the next one is ready when one ends
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def classify(
        self,
        batch: Sequence[Decoded],
        options: ClassifyOptions,
        resizer: DeviceResizer | None = None,
    ) -> list[Prediction]:
        """One prediction for each decoded image of one batch, in order; see `stream`."""
        pixels = [d.pixels for d in batch if d.pixels is not None]
        outputs = None
        if pixels:
            outputs = self._backend.run(
                np.stack(pixels) if resizer is None else resizer.run(pixels)
            )
        return self.predict(batch, outputs, options)

    def predict(
        self, batch: Sequence[Decoded], outputs: Outputs | None, options: ClassifyOptions
    ) -> list[Prediction]:
        """One prediction for each decoded image, in order, from the graph's outputs.

        Args:
            outputs: a row for each image that could be read; None where none could.
        """
        rows: Iterator[Prediction] = iter(())
        if outputs is not None:
            names = [d.name for d in batch if d.pixels is not None]
            signal = self._signal if options.flag_unknown else None
            rows = read_outputs(names, outputs, self.manifest, options.top_k, signal)
        return [
            Prediction(path=item.name, error=str(item.error)) if item.pixels is None else next(rows)
            for item in batch
        ]

    @functools.cached_property
    def _signal(self) -> UnknownSignal:
        return read_signal(self.manifest, "flag_unknown")
