"""The command `fedapt-runtime`: results on stdout or in --out, messages on stderr."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fedapt_runtime
from fedapt_runtime.backends.base import COMPUTE, DEFAULT_BATCH
from fedapt_runtime.backends.choose import (
    BACKENDS,
    DEVICES,
    ENGINE_SUFFIX,
    PERFORMANCE_HINTS,
    list_candidates,
    load_backend,
    read_environment,
)
from fedapt_runtime.backends.model_checks import read_manifest
from fedapt_runtime.backends.selection import Candidate
from fedapt_runtime.batch import Engine, Summary, classify_files
from fedapt_runtime.bench import bench, choose_batch_size, load_images
from fedapt_runtime.classifier import Classifier
from fedapt_runtime.device_resize import DeviceResizer
from fedapt_runtime.doctor import examine
from fedapt_runtime.errors import EXIT_INTERRUPTED, ReportedError
from fedapt_runtime.formats import LeftOut, describe_left_out
from fedapt_runtime.journal import part_path, read_ran_on
from fedapt_runtime.manifest import METADATA_KEY
from fedapt_runtime.onnx_file import check_content
from fedapt_runtime.output import check_output
from fedapt_runtime.pipeline import Image
from fedapt_runtime.printable import printable, printable_json
from fedapt_runtime.serve.command import add_serve
from fedapt_runtime.sources import count_images, find_images
from fedapt_runtime.streams import fail_stdout, open_standard_streams


class _Parser(argparse.ArgumentParser):
    """Its errors repeat arguments, which a shell's pattern makes of the names of files."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message or "", lines=True), file)


def _say(text: str) -> None:
    """Print a message; names in it may be untrusted."""
    print(printable(text), file=sys.stderr)


def _show(text: str) -> None:
    """Print a line of a result."""
    print(printable(text))


def build_parser() -> argparse.ArgumentParser:
    """The command line with all its options."""
    parser = _Parser(
        prog="fedapt-runtime", description="Classify images with a fused fedapt model."
    )
    parser.add_argument("--version", action="version", version=fedapt_runtime.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    classify = commands.add_parser("classify", help="classify images")
    classify.add_argument(
        "model", type=Path, help="a model.onnx or model.engine of `fedapt export`"
    )
    classify.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="images, folders, .zip and .tar archives, patterns, lists of paths (.txt, .lst), or -"
        " for a list on stdin",
    )
    classify.add_argument(
        "--out",
        help="predictions.jsonl, .csv or .parquet, a URI too; without it, JSON lines on stdout",
    )
    classify.add_argument(
        "--resume", action="store_true", help="continue after the rows of a stopped job"
    )
    classify.add_argument(
        "--batch-size",
        type=_batch_size,
        metavar="N|auto",
        help="auto measures sizes for 1 to 2 seconds [8 on a CPU, 32 on a GPU]",
    )
    classify.add_argument(
        "--preprocess",
        default="exact",
        choices=("exact", "fast", "openclip", "device"),
        help="fast decodes large JPEGs at a fraction of their size; device resizes on the GPU;"
        " openclip clips grey images of 16 bits or more at 255, exact scales them [exact]",
    )
    classify.add_argument(
        "--flag-unknown",
        action="store_true",
        help="add the columns unknown_score and unknown (above the threshold)",
    )
    classify.add_argument("--top-k", type=_positive, default=5, metavar="K")
    classify.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="number of decoding threads; for ray, number of models",
    )
    classify.add_argument("--head", type=Path, help="a head file to use instead of the model's own")
    classify.add_argument(
        "--backend",
        default="auto",
        choices=("auto", *BACKENDS),
        help="auto measures the installed backends at a model's first load [auto]",
    )
    classify.add_argument("--device", default="auto", choices=("auto", *DEVICES), help="[auto]")
    classify.add_argument(
        "--compute",
        default="auto",
        choices=("auto", *COMPUTE),
        help="precision of products; auto selects bf16 if it is faster and the export found no"
        " changed label [auto]",
    )
    classify.add_argument(
        "--engine", default="local", choices=("local", "ray"), help="where the job runs [local]"
    )
    classify.add_argument(
        "--gpus-per-worker",
        type=float,
        default=0.0,
        metavar="N",
        help="GPUs of each worker of --engine ray [0]",
    )
    classify.add_argument(
        "--json", action="store_true", help="print the summary as JSON on stdout (needs --out)"
    )
    classify.set_defaults(run=run_classify)

    bench = commands.add_parser("bench", help="time inference and decoding on this machine")
    bench.add_argument("model", type=Path)
    bench.add_argument("--head", type=Path, help="a head file to use instead of the model's own")
    bench.add_argument(
        "--backend",
        type=_backends,
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
        help="CPU only: latency runs a batch on all cores, throughput (as classify) one on each"
        " [latency]",
    )
    bench.add_argument(
        "--batch-sizes", type=_positives, default=(1, 8, 32), metavar="N,N", help="[1,8,32]"
    )
    bench.add_argument(
        "--seconds",
        type=_seconds,
        default=3.0,
        metavar="S",
        help="seconds for each measurement [3]",
    )
    bench.add_argument("--json", action="store_true", help="print the results as JSON")
    bench.set_defaults(run=run_bench)

    add_serve(commands)

    check = commands.add_parser(
        "check", help="compare a TensorRT engine with the model that it was built from"
    )
    check.add_argument("engine", type=Path, help="a model.engine, also one built by trtexec")
    check.add_argument(
        "--against", type=Path, required=True, metavar="MODEL", help="the model.onnx"
    )
    check.add_argument(
        "--images", nargs="+", default=[], metavar="PATH", help="images to compare on [noise]"
    )
    check.add_argument("--json", action="store_true", help="print the results as JSON")
    check.set_defaults(run=run_check)

    describe = commands.add_parser("describe", help="show a model's metadata as JSON")
    describe.add_argument("model", type=Path)
    describe.set_defaults(run=run_describe)

    doctor = commands.add_parser(
        "doctor", help="list packages and GPUs, and how to install the missing ones"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=run_doctor)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return seconds


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else _positive(text)


def run_classify(options: argparse.Namespace) -> None:
    """`fedapt-runtime classify`."""
    if options.json and options.out is None:
        build_parser().error("--json prints the summary on stdout: give the rows a file with --out")
    if options.resume and options.out is None:
        build_parser().error("--resume goes on with a file: name it with --out")
    if options.gpus_per_worker and options.engine != "ray":
        build_parser().error("--gpus-per-worker shares a cluster's GPUs: add --engine ray")
    if options.preprocess == "device" and options.engine == "ray":
        build_parser().error("--preprocess device resizes on this machine's GPU: leave out ray")
    check_output(options.out)
    ran_on: dict[str, str] = {}
    if options.resume and (options.backend, options.compute) == ("auto", "auto"):
        ran_on = read_ran_on(options.out)  # of the job that was stopped
    classifier = Classifier.load(
        options.model,
        ran_on.get("backend", options.backend),
        options.device,
        options.head,
        performance_hint="throughput",
        compute=ran_on.get("compute", options.compute),
    )
    resizer = None
    if options.preprocess == "device":
        resizer = DeviceResizer(classifier.manifest.preprocessing)
    total = count_images(options.paths)
    batch_size, chosen = options.batch_size, ""
    if batch_size == "auto" and options.resume and part_path(options.out).is_file():
        batch_size = None  # that of the job that was stopped
    if batch_size == "auto":
        batch_size = choose_batch_size(classifier.backend)
        chosen = f", batches of {batch_size}"
    _say(f"{options.model}: {classifier.description}{chosen}")
    show = _Progress(total)
    left_out = LeftOut()
    summary = classify_files(
        classifier,
        find_images(options.paths, left_out),
        options.out,
        batch_size=batch_size,
        top_k=options.top_k,
        workers=options.workers,
        fast=options.preprocess == "fast",
        depth=_depth(options),
        resizer=resizer,
        flag_unknown=options.flag_unknown,
        resume=options.resume,
        progress=show,
        engine=_ray_engine(options, classifier, batch_size) if options.engine == "ray" else None,
    )
    summary.left_out = dict(left_out)
    show.finish(summary)
    if options.json:
        rate = {"images_per_second": summary.images_per_second}
        print(printable_json(dataclasses.asdict(summary) | rate))


def _depth(options: argparse.Namespace) -> str | None:
    return "openclip" if options.preprocess == "openclip" else None


def _ray_engine(
    options: argparse.Namespace, classifier: Classifier, batch_size: int | None
) -> Engine:
    from fedapt_runtime.ray_engine import RaySettings, predict_on_ray

    # a batch is a task of Ray's: too small ones cost more than they compute
    size = batch_size or DEFAULT_BATCH
    ran_on = {"backend": options.backend, "compute": options.compute}
    if not options.gpus_per_worker:
        ran_on = classifier.ran_on  # every worker computes what this machine would

    def predict(images: Iterable[Image]) -> Iterator[dict[str, Any]]:
        return predict_on_ray(
            options.model,
            images,
            classifier.preprocessing(_depth(options)),
            RaySettings(options.workers, options.gpus_per_worker),
            **ran_on,
            device=options.device,
            head=options.head,
            batch_size=size,
            top_k=options.top_k,
            fast=options.preprocess == "fast",
            flag_unknown=options.flag_unknown,
        )

    return predict


def _positives(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _backends(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in ("auto", *BACKENDS):
            raise argparse.ArgumentTypeError(
                f"found {name}, expected auto or any of {', '.join(BACKENDS)}"
            )
    return names


def run_bench(options: argparse.Namespace) -> None:
    """`fedapt-runtime bench`."""
    backends = (
        load_backend(
            options.model,
            candidate.backend,
            options.device,
            options.head,
            performance_hint=options.performance_hint,
            compute=candidate.compute,
        )
        for candidate in _list_candidates(options)
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
        _show(f"{options.model}: {timed.backend}, {cores} cores, {timed.in_flight} at once")
        if timed is not report.backends[0]:
            _show(
                f"{timed.labels_changed} of {report.compared_on} with another label than above,"
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
    """Each requested backend, in each compute precision that it has here."""
    found: dict[Candidate, None] = {}
    for name in options.backend:
        is_engine = options.model.suffix == ENGINE_SUFFIX
        backend, compute = read_environment(name, options.compute, is_engine)
        if is_engine and backend == "auto":
            backend = "tensorrt"
        found |= dict.fromkeys(list_candidates(backend, options.device, compute))
    return list(found)


def run_check(options: argparse.Namespace) -> None:
    """`fedapt-runtime check`."""
    from fedapt_runtime.engine_check import check_engine

    report = check_engine(options.engine, options.against, options.images)
    if options.json:
        print(printable_json(report.to_dict(), indent=2))
        return
    _show(f"{options.engine} computes what {options.against} computes")
    _show(f"batches of {', '.join(map(str, report.batch_sizes))}, on {report.images}")
    for name, value in (
        ("engine against ONNX Runtime", report.probability_difference),
        ("rows of one image in a batch", report.repeated_difference),
        ("images in another order", report.permuted_difference),
    ):
        print(f"{name:28} {value:.1e}  largest difference of class probabilities")


def run_describe(options: argparse.Namespace) -> None:
    """`fedapt-runtime describe`."""
    if options.model.suffix == ENGINE_SUFFIX:
        manifest = Classifier.load(options.model).manifest
    else:
        manifest = read_manifest(options.model)
        check_content(options.model, METADATA_KEY)
    print(printable_json(manifest.describe(), indent=2))


def run_doctor(options: argparse.Namespace) -> None:
    """`fedapt-runtime doctor`."""
    findings = examine()
    if options.json:
        print(printable_json([finding.to_dict() for finding in findings], indent=2))
        return
    for finding in findings:
        way = "" if finding.is_there else f": {finding.install}"
        here = "yes" if finding.is_there else "no"
        _show(f"{finding.name:13} {here:4} {finding.detail}{way}")


class _Progress:
    """A line on stderr that is rewritten a few times a second, and only on a terminal."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._shown = 0.0

    def __call__(self, summary: Summary) -> None:
        now = time.monotonic()
        if self._terminal and now - self._shown > 0.2:
            self._shown = now
            rate = summary.images_per_second
            of, left = "", ""
            if self._total is not None:
                of = f" of {self._total}"
                seconds = (self._total - summary.images) / rate if rate else 0.0
                left = f", {seconds:.0f} s left"
            print(
                f"\r{summary.images}{of} images, {rate:.0f} a second{left} ",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def finish(self, summary: Summary) -> None:
        if summary.finished:
            _say(f"finished before: {summary.images} rows, nothing to do")
            return
        print(
            f"{chr(13) if self._terminal else ''}{summary.images} images in {summary.seconds:.1f} s"
            f" ({summary.images_per_second:.0f} a second), {summary.errors} with errors"
            + (f", {summary.resumed} done before" if summary.resumed else ""),
            file=sys.stderr,
        )
        for kind, count in sorted(summary.kinds.items(), key=lambda item: -item[1]):
            _say(f"  {count} {kind}")
        if summary.left_out:
            _say(f"left out: {describe_left_out(summary.left_out)}")


def _name_options(text: str, options: argparse.Namespace) -> str:
    """The error with `--batch-size` where the library names the parameter `batch_size`."""

    def name(found: re.Match[str]) -> str:
        return "--" + found[1].replace("_", "-") if hasattr(options, found[1]) else found[0]

    return re.sub(r"`(\w+)`", name, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2, 8, 9 or 130."""
    open_standard_streams()
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except ReportedError as error:
        _say(f"error: {_name_options(str(error), options)}")
        return error.exit_code
    except KeyboardInterrupt:
        out: str | None = getattr(options, "out", None)
        note = "no output file was written"
        if out is not None and part_path(out).is_file():
            note = f"finished rows are in {part_path(out)}, --resume goes on"
        _say(f"interrupted: {note}")
        return EXIT_INTERRUPTED
    except OSError as error:
        # only stdout is left to fail here
        if (failure := fail_stdout(error)) is not None:
            _say(f"error: {failure}")
            return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
