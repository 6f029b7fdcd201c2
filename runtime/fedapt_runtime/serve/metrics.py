"""The metrics for Prometheus at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in their own registry.

    Attributes:
        requests: count by route, method and status.
        request_s: seconds from a request's head to the end of its response, by route.
        images: count by model and outcome, `classified` or `unreadable`.
        batch_images: images in each run of a graph, by model.
        inference_s: seconds of each run of a graph, by model.
        decode_s: seconds to decode and resize an image, without the wait for a thread.
        head_swaps: count by model.
        model: always 1; its labels are the name, version and backend of each model.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "fedapt_requests", "Requests", ["route", "method", "status"], registry=registry
        )
        self.request_s = Histogram(
            "fedapt_request_seconds",
            "Seconds from a request's head to the end of its response",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter("fedapt_images", "Images", ["model", "outcome"], registry=registry)
        self.batch_images = Histogram(
            "fedapt_batch_images",
            "Images in each run of a graph",
            ["model"],
            buckets=_IMAGES,
            registry=registry,
        )
        self.inference_s = Histogram(
            "fedapt_inference_seconds",
            "Seconds of each run of a graph",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.decode_s = Histogram(
            "fedapt_decode_seconds",
            "Seconds to decode and resize an image",
            buckets=_SECONDS,
            registry=registry,
        )
        self.head_swaps = Counter("fedapt_head_swaps", "Head swaps", ["model"], registry=registry)
        self.model = Gauge(
            "fedapt_model_info",
            "Served models",
            ["model", "version", "backend"],
            registry=registry,
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge; `read` gives its value each time Prometheus reads the metrics."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def show(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
