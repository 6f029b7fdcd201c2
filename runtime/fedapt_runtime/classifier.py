"""The classifier: images in, predictions out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from fedapt_runtime.backends.base import Backend, Outputs
from fedapt_runtime.backends.choose import load_backend
from fedapt_runtime.decode_processes import decode_in_processes
from fedapt_runtime.device_resize import DeviceResizer
from fedapt_runtime.errors import InputError
from fedapt_runtime.machine import decode_threads
from fedapt_runtime.manifest import Manifest
from fedapt_runtime.options import ClassifyOptions, LoadOptions
from fedapt_runtime.pipeline import Decoded, Image, batched, decode_ahead, decode_one, name_of
from fedapt_runtime.prediction import Prediction, read_outputs
from fedapt_runtime.preprocess import Preprocessing
from fedapt_runtime.turns import TurnPool
from fedapt_runtime.unknown import UnknownSignal, read_signal

T = TypeVar("T")


class Classifier:
    """A fused model that classifies batches. Calls from several threads are safe.

    `Classifier.load` builds one. A call with paths or arrays returns one prediction for each, in
    order. `stream` yields the same predictions one by one.

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
                `tensorrt` (TensorRT engines). `auto` chooses the fastest installed backend, which
                it measures at the first load on a machine; `description` gives the choice and the
                reason.
            device: `auto`, `cpu` or `cuda`.
            head: a head file to use instead of the model's own head.
            threads: threads of inference on a CPU; 0 uses every core.
            performance_hint: on a CPU, `latency` runs one batch on all threads, which minimises the
                time to its result. `throughput` runs one batch on each thread, which maximises the
                images per second.
            compute: `fp32` multiplies in the types of the graph. `bf16` multiplies the graph's
                float32 matrices in bfloat16, if backend and processor can. `auto` uses `bf16` where
                it is faster and changed no label in the export.

        The environment variables `FEDAPT_BACKEND` and `FEDAPT_COMPUTE` replace `auto`.

        Raises:
            ModelFileError: the file is missing, damaged or not a fedapt model, or the head is of
                another CLIP.
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
        """The model's preprocessing; `depth` replaces its depth, see `Preprocessing`."""
        plain = self.manifest.preprocessing
        return plain if depth is None else dataclasses.replace(plain, depth=depth)

    @property
    def description(self) -> str:
        """Backend, version and device in a few words."""
        return self._backend.description

    @property
    def ran_on(self) -> dict[str, str]:
        """`backend` and `compute`, with the names that `load` accepts."""
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
        decode_processes: int = 0,
        fast: bool = False,
        depth: str | None = None,
        flag_unknown: bool = False,
        resizer: DeviceResizer | None = None,
    ) -> Iterator[Prediction]:
        """Yield one prediction per image, in order, decoding in threads beside inference.

        Args:
            images: paths of image files, images in archives (`sources.find_images`), or uint8 RGB
                arrays [height, width, 3] of any size.
            batch_size: images per run of the graph; None uses the backend's default.
            top_k: number of classes to report.
            workers: decoding threads beside inference; None starts one per core, at most 8. On a
                CPU with `performance_hint="throughput"`, None lets the threads of inference decode.
            decode_processes: processes that decode instead of threads, which is faster on more than
                8 cores; 0 uses threads. See `decode_in_processes` for what a script needs.
            fast: decode large JPEGs at a fraction of their size; the pixels are then not exact.
            depth: depth of grey images beyond 8 bits, see `Preprocessing`; None uses the model's.
            flag_unknown: add `unknown_score` and `unknown`, which compare each image with the known
                domains.
            resizer: resizes and crops on a GPU; decoding threads then only decode.

        Yields:
            Predictions; that of an unreadable image has an `error`.

        Raises:
            InputError: an array is not a uint8 RGB image, or a number is below 1.
            RuntimeFailure: `flag_unknown` with a model that has no such signal.
        """
        return self.run(
            images,
            ClassifyOptions(top_k, fast, depth, flag_unknown),
            batch_size=batch_size,
            workers=workers,
            decode_processes=decode_processes,
            resizer=resizer,
        )

    def run(
        self,
        images: Iterable[Image],
        options: ClassifyOptions,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        decode_processes: int = 0,
        resizer: DeviceResizer | None = None,
    ) -> Iterator[Prediction]:
        """Like `stream`, with the options of a row as one object."""
        if isinstance(images, str | os.PathLike):
            images = [images]  # a single path, not an iterable of characters
        batch_size = self._backend.default_batch if batch_size is None else batch_size
        _check_min(
            batch_size=batch_size, top_k=options.top_k, workers=1 if workers is None else workers
        )
        _check_min(0, decode_processes=decode_processes)
        if options.flag_unknown:
            _ = self._signal  # raises for a model without a signal, before any work
        if self._backend.task_size and not (workers or decode_processes or resizer is not None):
            yield from self._run_in_turns(images, options, batch_size)
            return
        workers, in_flight = workers or decode_threads(), self._backend.in_flight
        decoded = (decode_in_processes if decode_processes else decode_ahead)(
            images,
            self.preprocessing(options.depth),
            decode_processes or workers,
            max(4 * batch_size, 2 * workers),
            options.fast,
            resize=resizer is None,
        )
        classify = functools.partial(
            self.classify, options=options, batch_size=batch_size, resizer=resizer
        )
        pool = ThreadPoolExecutor(in_flight, thread_name_prefix="fedapt-infer")
        try:
            # one batch is queued behind the running ones
            yield from _in_order(
                batched(decoded, batch_size), functools.partial(pool.submit, classify), in_flight
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _run_in_turns(
        self, images: Iterable[Image], options: ClassifyOptions, batch_size: int
    ) -> Iterator[Prediction]:
        preprocessing, in_flight = self.preprocessing(options.depth), self._backend.in_flight

        def decode(task: Sequence[tuple[Image, str]]) -> list[Decoded]:
            return [decode_one(image, name, preprocessing, options.fast) for image, name in task]

        pool = TurnPool(
            in_flight,
            decode,
            functools.partial(self.classify, options=options, batch_size=batch_size),
        )
        named = ((image, name_of(image, i)) for i, image in enumerate(images))
        tasks = _grow(named, batch_size, self._backend.task_size, in_flight)
        try:
            # of three tasks for each thread, one is running, one decoded, one waits
            yield from _in_order(tasks, pool.submit, 3 * in_flight)
        finally:
            pool.shutdown()

    def classify(
        self,
        images: Sequence[Decoded],
        options: ClassifyOptions,
        *,
        batch_size: int | None = None,
        resizer: DeviceResizer | None = None,
    ) -> list[Prediction]:
        """One prediction for each decoded image, in order; see `stream`.

        Args:
            images: the decoded images.
            options: `top_k` and `flag_unknown` are used.
            batch_size: images per run of the graph, unreadable ones included; None runs it once.
            resizer: see `stream`.
        """
        parts: list[Outputs] = []
        for batch in batched(images, batch_size or max(1, len(images))):
            pixels = [d.pixels for d in batch if d.pixels is not None]
            if pixels:
                stacked = np.stack(pixels) if resizer is None else resizer.run(pixels)
                parts.append(self._backend.run(stacked))
        outputs = Outputs(*map(np.concatenate, zip(*parts, strict=True))) if parts else None
        return self.predict(images, outputs, options)

    def predict(
        self, batch: Sequence[Decoded], outputs: Outputs | None, options: ClassifyOptions
    ) -> list[Prediction]:
        """One prediction for each decoded image, in order, from the graph's outputs.

        Args:
            batch: the decoded images.
            outputs: one row for each readable image; None if there is none.
            options: `top_k` and `flag_unknown` are used.
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


def _grow(items: Iterable[T], batch_size: int, size: int, threads: int) -> Iterator[list[T]]:
    """Yield tasks of whole batches, up to `size` items; small ones first, for jobs of few images.

    Each size comes once for every thread, then the double size.
    """
    items, length = iter(items), batch_size
    for n_tasks in itertools.count(1):
        task = list(itertools.islice(items, length))
        if not task:
            return
        yield task
        if n_tasks % threads == 0 and length < size:
            length *= 2


def _in_order(
    tasks: Iterable[T], submit: Callable[[T], Future[list[Prediction]]], ahead: int
) -> Iterator[Prediction]:
    """Yield the results of the tasks, of which at most `ahead` wait or run meanwhile."""
    pending: deque[Future[list[Prediction]]] = deque()
    for task in tasks:
        pending.append(submit(task))
        if len(pending) > ahead:
            yield from pending.popleft().result()
    while pending:
        yield from pending.popleft().result()


def _check_min(minimum: int = 1, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < minimum:
            raise InputError(
                where=name,
                found=str(number),
                expected=f"a whole number of at least {minimum}",
                next_step="pass a larger number",
            )
