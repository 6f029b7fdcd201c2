"""`fedapt-runtime bench`: speed of backends on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedapt_runtime.backends.choose import (
    ENGINE_SUFFIX,
    list_candidates,
    load_backend,
    read_environment,
)
from fedapt_runtime.backends.model_checks import read_manifest
from fedapt_runtime.backends.selection import Candidate
from fedapt_runtime.bench import bench, load_images
from fedapt_runtime.cli.messages import show
from fedapt_runtime.cli.values import parse_backends, parse_positives, parse_seconds
from fedapt_runtime.options import BACKENDS, COMPUTE, DEVICES, PERFORMANCE_HINTS, LoadOptions
from fedapt_runtime.printable import printable_json


def add_bench(commands: Any) -> None:
    """Add the command to the parser of `fedapt-runtime`."""
    bench = commands.add_parser("bench", help="time inference and decoding on this machine")
    bench.add_argument("model", type=Path)
    bench.add_argument("--head", type=Path, help="a head file to use instead of the model's own")
    bench.add_argument(
        "--backend",
        type=parse_backends,
        default=("auto",),
        metavar="B,B",
        help=f"auto (all that are installed), or any of {', '.join(BACKENDS)} [auto]",
    )
    bench.add_argument(
        "--compute",
        default="auto",
        choices=("auto", *COMPUTE),
        help="auto measures each precision that the processor supports [auto]",
    )
    bench.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="images to compare the backends on [noise]",
    )
    bench.add_argument("--device", default="auto", choices=("auto", *DEVICES), help="[auto]")
    bench.add_argument(
        "--performance-hint",
        default="latency",
        choices=PERFORMANCE_HINTS,
        help="CPU only: latency runs one batch on all cores; throughput runs one batch on each"
        " core, as classify does [latency]",
    )
    bench.add_argument(
        "--batch-sizes", type=parse_positives, default=(1, 8, 32), metavar="N,N", help="[1,8,32]"
    )
    bench.add_argument(
        "--seconds",
        type=parse_seconds,
        default=3.0,
        metavar="S",
        help="seconds for each measurement [3]",
    )
    bench.add_argument("--json", action="store_true", help="print the results as JSON")
    bench.set_defaults(run=run_bench)


def run_bench(options: argparse.Namespace) -> None:
    """`fedapt-runtime bench`."""
    device, head, hint = options.device, options.head, options.performance_hint
    backends = (
        load_backend(options.model, LoadOptions(backend, device, head, 0, hint, compute))
        for backend, compute in _list_candidates(options)
    )
    images = None
    if options.images:
        preprocessing = read_manifest(options.model).preprocessing
        images = load_images(options.images, preprocessing)
    report = bench(backends, options.batch_sizes, options.seconds, images)
    if options.json:
        print(printable_json(report.to_dict(), indent=2))
        return
    for timed in report.backends:
        cores = report.machine["cores"]
        show(f"{options.model}: {timed.backend}, {cores} cores, {timed.in_flight} at once")
        if timed is not report.backends[0]:
            show(
                f"{timed.labels_changed} of {report.compared_on} differ in label"
                " from the first backend,"
                f" unit features within {timed.feature_difference:.0e}"
            )
        print(f"{'batch':>6} {'images/s':>9} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}")
        for t in timed.batches:
            print(
                f"{t.batch:6} {t.images_per_second:9.1f} {t.p50_ms:8.1f} {t.p95_ms:8.1f}"
                f" {t.p99_ms:8.1f}"
            )
    print(f"decoding a 640 x 480 JPEG: {report.decode_ms:.1f} ms on one thread")


def _list_candidates(options: argparse.Namespace) -> list[Candidate]:
    """Each requested backend, in each compute precision that it supports here."""
    found: dict[Candidate, None] = {}
    for name in options.backend:
        is_engine = options.model.suffix == ENGINE_SUFFIX
        backend, compute = read_environment(name, options.compute, is_engine)
        if is_engine and backend == "auto":
            backend = "tensorrt"
        found |= dict.fromkeys(list_candidates(options.model, backend, options.device, compute))
    return list(found)
