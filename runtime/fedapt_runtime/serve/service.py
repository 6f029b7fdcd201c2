"""The served models, and the path of an image: a decoding thread, then a batch."""

from __future__ import annotations

import asyncio
import copy
import functools
import hashlib
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fedapt_runtime.backends.base import Outputs, SwappableBackend
from fedapt_runtime.classifier import Classifier
from fedapt_runtime.errors import ImageError, ReportedError, RequestError
from fedapt_runtime.head import parse_head
from fedapt_runtime.machine import decode_threads
from fedapt_runtime.options import ClassifyOptions
from fedapt_runtime.pipeline import Decoded
from fedapt_runtime.prediction import Prediction
from fedapt_runtime.serve.batcher import Batcher, BatchSettings
from fedapt_runtime.serve.limits import Limits, Quota
from fedapt_runtime.serve.metrics import Metrics


@dataclass(frozen=True)
class Upload:
    """An image from a client: its name, and the bytes of its file."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Version:
    """A model with one head. The same version answers all images of a request."""

    classifier: Classifier
    batcher: Batcher

    @functools.cached_property
    def label(self) -> str:
        """The first 12 hexadecimal digits of SHA-256 of its manifest.

        The manifest contains the hash of the model's or the head's content.
        """
        return hashlib.sha256(self.classifier.manifest.to_json().encode()).hexdigest()[:12]


class ServedModel:
    """A named model whose head can be swapped. It belongs to the event loop that creates it."""

    def __init__(
        self, name: str, classifier: Classifier, settings: BatchSettings, metrics: Metrics
    ) -> None:
        self.name = name
        self._metrics, self._settings = metrics, settings
        self._threads = ThreadPoolExecutor(settings.in_flight, thread_name_prefix="fedapt-infer")
        self._swapping = asyncio.Lock()
        self.current = self._open(classifier)

    def _open(self, classifier: Classifier) -> Version:
        batcher = Batcher(classifier.backend.run, self._threads, self._settings, self._observe)
        version = Version(classifier, batcher)
        self._metrics.model.labels(self.name, version.label, classifier.description).set(1)
        return version

    def _observe(self, images: int, seconds: float) -> None:
        self._metrics.batch_images.labels(self.name).observe(images)
        self._metrics.inference_s.labels(self.name).observe(seconds)

    async def swap_head(self, data: bytes) -> Version:
        """Use another head for later requests; running requests keep theirs.

        Args:
            data: a head file.

        Raises:
            RequestError: 422 for a damaged head, 409 for a head that does not fit the model, or a
                model whose backend cannot swap heads.
        """
        async with self._swapping:
            old = self.current
            classifier = await asyncio.to_thread(_take_head, old.classifier, data)
            self.current = self._open(classifier)
            if self.current.label != old.label:
                description = old.classifier.description
                self._metrics.model.remove(self.name, old.label, description)
            self._metrics.head_swaps.labels(self.name).inc()
            drained = asyncio.create_task(old.batcher.close())
            self._draining = drained  # asyncio may collect a task without a reference
            return self.current

    async def close(self) -> None:
        """Complete the accepted images."""
        await self.current.batcher.close()
        self._threads.shutdown()


def _take_head(classifier: Classifier, data: bytes) -> Classifier:
    try:
        head = parse_head(data, "head")
    except ReportedError as error:
        raise RequestError(422, **error.parts()) from error
    backend = classifier.backend
    if not isinstance(backend, SwappableBackend):
        raise RequestError(
            409,
            where="head",
            found=f"a model on {classifier.description}, whose head is fixed",
            expected="a model on ONNX Runtime",
            next_step="serve the .onnx file with the backend onnxruntime",
        )
    try:
        return Classifier(backend.with_head(head, "head"))
    except ReportedError as error:
        raise RequestError(409, **error.parts()) from error


class Service:
    """All models of a server, with their limits and metrics.

    Args:
        classifiers: name -> classifier; the first is the default.
        limits: limits of requests.
        max_batch: maximum number of images in a batch; None uses each backend's default.
        max_delay_s: maximum time, in seconds, that the first image of a batch waits for others.
        workers: decoding threads; None starts one for each core.

    Attributes:
        metrics: the server's metrics.
        queue: images that are accepted and not yet answered.
        bodies: bytes of request bodies.
        models: name -> model, filled by `open`.
    """

    def __init__(
        self,
        classifiers: dict[str, Classifier],
        limits: Limits,
        *,
        max_batch: int | None = None,
        max_delay_s: float = 0.002,
        workers: int | None = None,
    ) -> None:
        self._classifiers, self.limits = classifiers, limits
        self._max_batch, self._max_delay_s = max_batch, max_delay_s
        self._decoders = ThreadPoolExecutor(
            workers or decode_threads(), thread_name_prefix="fedapt-decode"
        )
        self.metrics = Metrics()
        self.queue = Quota(limits.max_queue, "places for images")
        self.bodies = Quota(limits.max_bodies, "bytes for bodies")
        self.models: dict[str, ServedModel] = {}
        self.metrics.watch(
            "fedapt_queued_images", "Images accepted and not answered", lambda: self.queue.held
        )
        self.metrics.watch(
            "fedapt_body_bytes", "Bytes of held request bodies", lambda: self.bodies.held
        )

    def open(self) -> None:
        """Start the batchers; call it in the server's event loop."""
        for name, classifier in self._classifiers.items():
            backend = classifier.backend
            settings = BatchSettings(
                self._max_batch or backend.default_batch, self._max_delay_s, backend.in_flight
            )
            self.models[name] = ServedModel(name, classifier, settings, self.metrics)

    async def close(self) -> None:
        """Complete the accepted images."""
        for model in self.models.values():
            await model.close()
        self._decoders.shutdown()

    def find_model(self, name: str | None = None) -> ServedModel:
        """The model of this name; the first where None.

        Raises:
            RequestError: 404, there is no such model.
        """
        model = self.models.get(next(iter(self.models), "") if name is None else name)
        if model is None:
            raise RequestError(
                404,
                where="model",
                found=repr(name),
                expected=f"one of {', '.join(self.models) or 'none'}",
                next_step="choose a model of this server",
            )
        return model

    async def classify(
        self, model: ServedModel, uploads: Sequence[Upload], options: ClassifyOptions
    ) -> tuple[Version, list[Prediction]]:
        """Classify uploaded images.

        Returns:
            The version that answered, and one prediction for each image, in order. The prediction
            of an unreadable image has an `error`.

        Raises:
            RequestError: 413 for too many images, 503 if the queue is full, 400 for no image or for
                `flag_unknown` with a model that has no such signal.
        """
        self._check_count(len(uploads))
        version = model.current
        classifier = version.classifier
        if options.flag_unknown and classifier.manifest.unknown is None:
            raise RequestError(
                400,
                where="flag_unknown",
                found="a model without a signal for unknown domains",
                expected="a model exported with images of two or more domains",
                next_step="export the model with its images, or omit flag_unknown",
            )
        with self.queue.hold(len(uploads)):
            answers = await asyncio.gather(*(self._answer(version, u) for u in uploads))
        rows = [row for _, row in answers if row is not None]
        outputs = Outputs(*map(np.stack, zip(*rows, strict=True))) if rows else None
        decoded = [item for item, _ in answers]
        predictions = classifier.predict(decoded, outputs, options)
        unreadable = sum(p.error is not None for p in predictions)
        self.metrics.images.labels(model.name, "unreadable").inc(unreadable)
        self.metrics.images.labels(model.name, "classified").inc(len(predictions) - unreadable)
        return version, predictions

    async def infer(self, model: ServedModel, images: np.ndarray) -> tuple[Version, Outputs]:
        """The graph's outputs for preprocessed images, and the version that computed them.

        Args:
            images: uint8 [n, height, width, 3].

        Raises:
            RequestError: 400 for no image, 413 for too many images, 503 if the queue is full.
        """
        self._check_count(len(images))
        version = model.current
        with self.queue.hold(len(images)):
            rows = await asyncio.gather(*(version.batcher.infer(image) for image in images))
        self.metrics.images.labels(model.name, "classified").inc(len(images))
        return version, Outputs(*map(np.stack, zip(*rows, strict=True)))

    def _check_count(self, images: int) -> None:
        if not 1 <= images <= self.limits.max_images:
            raise RequestError(
                413 if images else 400,
                where="images",
                found=f"{images} images",
                expected=f"1 to {self.limits.max_images}",
                next_step="send them in several requests" if images else "send an image",
            )

    async def _answer(self, version: Version, upload: Upload) -> tuple[Decoded, Outputs | None]:
        loop = asyncio.get_running_loop()
        item = await loop.run_in_executor(self._decoders, self._decode, version, upload)
        if item.pixels is None:
            return item, None
        outputs = await version.batcher.infer(item.pixels)
        return item, outputs

    def _decode(self, version: Version, upload: Upload) -> Decoded:
        started = time.perf_counter()
        preprocessing = version.classifier.manifest.preprocessing
        try:
            pixels = preprocessing.load(
                io.BytesIO(upload.data), upload.name, max_pixels=self.limits.max_pixels
            )
        except ImageError as error:
            # the traceback's frames would keep the decoded pixels in memory; a copy has none
            return Decoded(upload.name, error=copy.copy(error))
        finally:
            self.metrics.decode_s.observe(time.perf_counter() - started)
        return Decoded(upload.name, pixels)
