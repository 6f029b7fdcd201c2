"""Options of loading a model and of classifying images, each as one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

BACKENDS = ("onnxruntime", "openvino", "tensorrt-ep", "tensorrt")
DEVICES = ("cpu", "cuda")
COMPUTE = ("fp32", "bf16")
PERFORMANCE_HINTS = ("latency", "throughput")


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; `Classifier.load` describes the fields.

    Attributes:
        backend: `auto` or one of `BACKENDS`.
        device: `auto` or one of `DEVICES`.
        head: a head file to use in place of the model's own head.
        threads: threads of inference on a CPU; 0 takes every core.
        performance_hint: one of `PERFORMANCE_HINTS`.
        compute: `auto` or one of `COMPUTE`.
        n_images: number of images of the job; None if it is unknown.
    """

    backend: str = "auto"
    device: str = "auto"
    head: str | Path | None = None
    threads: int = 0
    performance_hint: str = "latency"
    compute: str = "auto"
    n_images: int | None = None

    @property
    def throughput(self) -> bool:
        """Whether each core of a CPU gets a batch of its own."""
        return self.performance_hint == "throughput"

    def on(self, ran_on: Mapping[str, str]) -> LoadOptions:
        """The same with `backend` and `compute` of another load, see `Classifier.ran_on`."""
        backend = ran_on.get("backend", self.backend)
        return replace(self, backend=backend, compute=ran_on.get("compute", self.compute))


@dataclass(frozen=True)
class ClassifyOptions:
    """The options that change a row besides the model and the image.

    Attributes:
        top_k: number of classes to report.
        fast: decode large JPEGs at a fraction of their size; no longer bit-exact.
        depth: depth of grey images beyond 8 bits, see `Preprocessing`; None takes the model's.
        flag_unknown: also report an unknown-domain score for each image.
    """

    top_k: int = 5
    fast: bool = False
    depth: str | None = None
    flag_unknown: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))


LOAD_DEFAULTS, CLASSIFY_DEFAULTS = LoadOptions(), ClassifyOptions()
