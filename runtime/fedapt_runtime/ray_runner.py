"""A batch job on a Ray cluster, whose workers load the model once.

A worker on a CPU decodes and classifies. For a worker on a GPU, the CPUs of the cluster decode.

The driver sends names and receives rows in order. It also writes the journal and the output. Ray
repeats the tasks of a killed worker; a resumed job continues after a killed driver. Decoding,
classification and rows use the same code as in one process.

Source: Ray Data, "Offline batch inference", `Dataset.map_batches` with a callable class.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fedapt_runtime.atomic import temporary_folder
from fedapt_runtime.backends.choose import list_files, load_backend
from fedapt_runtime.classifier import Classifier
from fedapt_runtime.errors import ImageError, InputError, MissingDependency
from fedapt_runtime.options import CLASSIFY_DEFAULTS, LOAD_DEFAULTS, ClassifyOptions, LoadOptions
from fedapt_runtime.pipeline import Decoded, Image, decode_one, name_of
from fedapt_runtime.preprocess import Preprocessing
from fedapt_runtime.sources import Member

_PORTION = 50_000  # names that the driver holds at the same time
TASK_SIZE = 64  # images


@dataclass(frozen=True)
class RaySettings:
    """Settings of a job on a Ray cluster.

    Attributes:
        workers: number of workers, which hold the model; None starts one for each CPU of the
            cluster, or as many as its GPUs allow.
        gpus: GPUs of each worker, which may be a fraction; 0 runs on CPUs with one thread each.
    """

    workers: int | None = None
    gpus: float = 0.0


@dataclass(frozen=True)
class _Job:
    """Description of the job for every worker."""

    files: dict[str, bytes]
    model: str
    load: LoadOptions  # with the head's file name
    preprocessing: Preprocessing
    options: ClassifyOptions


def predict_on_ray(
    model: Path,
    images: Iterable[Image],
    preprocessing: Preprocessing,
    settings: RaySettings,
    load: LoadOptions = LOAD_DEFAULTS,
    options: ClassifyOptions = CLASSIFY_DEFAULTS,
    task_size: int = TASK_SIZE,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of all images, in order.

    Args:
        model: the model file on the driver; workers get its bytes and need no shared disk.
        images: paths that every node can read, or URIs.
        preprocessing: preprocessing of the model.
        settings: workers and GPUs. RAY_ADDRESS names the cluster; without it, Ray starts on this
            machine.
        load: how each worker loads the model; `threads` and `performance_hint` follow `settings`.
        options: options that change a row; `depth` is part of `preprocessing`.
        task_size: images of a task. The overhead of Ray dominates small tasks. A worker on a
            CPU classifies a task in batches of its backend's default size.

    Yields:
        The fields of `Prediction.to_dict`.

    Raises:
        InputError: an image in an archive, an array, or too few GPUs in the cluster.
        MissingDependency: Ray is not installed.
    """
    ray = _import_ray()
    with _connected(ray):
        head = None if load.head is None else Path(load.head)
        files = list_files(model) if head is None else [*list_files(model), head]
        job = ray.put(
            _Job(
                files={path.name: path.read_bytes() for path in files},
                model=model.name,
                load=replace(
                    load,
                    head=head and head.name,
                    device="cuda" if settings.gpus and load.device == "auto" else load.device,
                    threads=0 if settings.gpus else 1,
                    performance_hint="latency" if settings.gpus else "throughput",
                ),
                preprocessing=preprocessing,
                options=options,
            )
        )
        workers, share = _share_cluster(ray.cluster_resources(), settings)
        names_left = (_encode_name(image) for image in images)
        while portion := list(islice(names_left, _PORTION)):
            n_blocks = math.ceil(len(portion) / task_size)
            rows = ray.data.from_items(
                [{"name": name} for name in portion], override_num_blocks=n_blocks
            )
            if settings.gpus:
                rows = rows.map_batches(
                    _decode_on_cpu,
                    fn_kwargs={"preprocessing": preprocessing, "fast": options.fast},
                    batch_size=None,
                )
            rows = rows.map_batches(
                _Worker,
                fn_constructor_args=([job],),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=min(workers, n_blocks)),
                num_cpus=share,
                num_gpus=settings.gpus or None,
            )
            for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
                for row in batch["row"]:
                    yield json.loads(row.decode("utf-8", "surrogateescape"))


def _share_cluster(resources: Mapping[str, float], settings: RaySettings) -> tuple[int, float]:
    """Number of workers, and the CPUs of each.

    Raises:
        InputError: the cluster has too few GPUs; Ray would wait for them without end.
    """
    cpus, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
    if settings.gpus:
        workers = settings.workers or max(1, int(gpus / settings.gpus))
        if workers * settings.gpus > gpus:
            raise InputError(
                where="gpus_per_worker",
                found=f"{workers} workers with {settings.gpus:g} GPUs each on {gpus:g} GPUs",
                expected="a cluster with that many GPUs",
                next_step="use fewer workers, or connect to another cluster with RAY_ADDRESS",
            )
        return workers, 0.0
    workers = settings.workers or max(1, int(cpus))
    return workers, min(1.0, cpus / workers)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependency(
            where="ray",
            found=f"no usable Ray ({error})",
            expected="Ray with Ray Data",
            next_step="pip install 'fedapt-runtime[ray]'",
        ) from error
    return ray


@contextlib.contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connect to Ray for the block, without its messages, in order; keep an existing connection."""
    begun = not ray.is_initialized()
    if begun:
        # turns off Ray's notices about future changes and restarted actors
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    try:
        yield
    finally:
        if begun:
            ray.shutdown()


def _encode_name(image: Image) -> bytes:
    if isinstance(image, Member | np.ndarray):
        raise InputError(
            where=name_of(image, 0),
            found="an image in an archive" if isinstance(image, Member) else "an array",
            expected="paths or URIs, which every worker can read",
            next_step="pass image files, or classify without Ray",
        )
    return os.fsencode(image)  # Arrow's strings are UTF-8, but file names need not be


def _decode(names: Iterable[bytes], preprocessing: Preprocessing, fast: bool) -> list[Decoded]:
    texts = [os.fsdecode(name) for name in names]
    return [decode_one(text, text, preprocessing, fast=fast) for text in texts]


def _decode_on_cpu(
    batch: dict[str, Any], preprocessing: Preprocessing, fast: bool
) -> dict[str, list[bytes]]:
    """The stage before a GPU: names -> pixels or errors."""
    found: dict[str, list[bytes]] = {"name": list(batch["name"]), "pixels": [], "error": []}
    for decoded in _decode(batch["name"], preprocessing, fast):
        found["pixels"].append(b"" if decoded.pixels is None else decoded.pixels.tobytes())
        text = json.dumps(decoded.error and decoded.error.parts())
        found["error"].append(text.encode("utf-8", "surrogateescape"))
    return found


def _unpack(batch: dict[str, Any], preprocessing: Preprocessing) -> list[Decoded]:
    """The inverse of `_decode_on_cpu`."""
    shape = (*preprocessing.size, 3)
    decoded = []
    for name, pixels, text in zip(batch["name"], batch["pixels"], batch["error"], strict=True):
        parts = json.loads(text)
        if parts is None:
            array = np.frombuffer(pixels, dtype=np.uint8).reshape(shape)
            decoded.append(Decoded(os.fsdecode(name), array))
        else:
            decoded.append(Decoded(os.fsdecode(name), error=ImageError(**parts)))
    return decoded


class _Worker:
    """Loads the model once, then turns names or pixels into rows."""

    def __init__(self, job: list[Any]) -> None:
        import ray

        received: _Job = ray.get(job[0])
        self._preprocessing, self._options = received.preprocessing, received.options
        with temporary_folder(Path(tempfile.gettempdir())) as folder:
            for name, data in received.files.items():
                Path(folder, name).write_bytes(data)
            load = received.load
            head = load.head and Path(folder, load.head)
            backend = load_backend(Path(folder, received.model), replace(load, head=head))
        self._classifier = Classifier(backend)
        # a GPU computes a task at once; on a CPU it exceeds the caches of a core
        self._batch_size = backend.default_batch if load.throughput else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        if "pixels" in batch:
            decoded = _unpack(batch, self._preprocessing)
        else:
            decoded = _decode(batch["name"], self._preprocessing, self._options.fast)
        predictions = self._classifier.classify(decoded, self._options, batch_size=self._batch_size)
        rows = (prediction.to_dict(self._options.flag_unknown) for prediction in predictions)
        return {
            "row": [
                json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape")
                for row in rows
            ]
        }
