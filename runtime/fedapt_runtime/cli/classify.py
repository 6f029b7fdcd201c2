"""`fedapt-runtime classify`: rows of predictions for images."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedapt_runtime.backends.choose import load_backend
from fedapt_runtime.batch import Runner, classify_files
from fedapt_runtime.bench import choose_batch_size
from fedapt_runtime.classifier import Classifier
from fedapt_runtime.cli.messages import say
from fedapt_runtime.cli.progress import Progress
from fedapt_runtime.cli.values import parse_batch_size, parse_positive, parse_whole
from fedapt_runtime.device_resize import DeviceResizer
from fedapt_runtime.formats import LeftOut
from fedapt_runtime.journal import part_path, read_ran_on
from fedapt_runtime.machine import decode_processes
from fedapt_runtime.options import BACKENDS, COMPUTE, DEVICES, ClassifyOptions, LoadOptions
from fedapt_runtime.output import check_output
from fedapt_runtime.pipeline import Image
from fedapt_runtime.printable import printable_json
from fedapt_runtime.sources import count_images, find_images


def add_classify(commands: Any) -> None:
    """Add the command to the parser of `fedapt-runtime`."""
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
        help="output file or URI (.jsonl, .csv or .parquet); default: JSON lines on stdout",
    )
    classify.add_argument(
        "--resume", action="store_true", help="continue after the rows of a stopped job"
    )
    classify.add_argument(
        "--batch-size",
        type=parse_batch_size,
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
    classify.add_argument("--top-k", type=parse_positive, default=5, metavar="K")
    classify.add_argument(
        "--workers",
        type=parse_positive,
        metavar="N",
        help="number of decoding threads beside inference [on a CPU, the threads of inference"
        " decode; on a GPU one per core, at most 8]; with --ray, number of models",
    )
    classify.add_argument(
        "--decode-processes",
        type=parse_whole,
        metavar="N",
        help="number of processes that decode instead of threads; 0 uses threads [0 on up to 8"
        " cores, with --workers, --ray or --preprocess device, and for fewer than 1000 images;"
        " otherwise one per core, at most 16]",
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
        "--ray",
        action="store_true",
        help="run on the Ray cluster that RAY_ADDRESS names, else on Ray on this machine",
    )
    classify.add_argument(
        "--gpus-per-worker",
        type=float,
        default=0.0,
        metavar="N",
        help="GPUs of each worker of --ray [0]",
    )
    classify.add_argument(
        "--json", action="store_true", help="print the summary as JSON on stdout (needs --out)"
    )
    classify.set_defaults(run=run_classify, refuse=classify.error)


def run_classify(options: argparse.Namespace) -> None:
    """`fedapt-runtime classify`."""
    if options.json and options.out is None:
        options.refuse("--json prints the summary on stdout: it needs --out for the rows")
    if options.resume and options.out is None:
        options.refuse("--resume continues a file: it needs --out")
    if options.gpus_per_worker and not options.ray:
        options.refuse("--gpus-per-worker needs --ray")
    if options.decode_processes and (options.workers or options.ray):
        options.refuse("--decode-processes excludes --workers and --ray")
    if options.preprocess == "device" and options.ray:
        options.refuse("--preprocess device uses this machine's GPU: it excludes --ray")
    check_output(options.out)
    total = count_images(options.paths)
    head, hint = options.head, "throughput"
    load = LoadOptions(options.backend, options.device, head, 0, hint, options.compute, total)
    if options.resume and (load.backend, load.compute) == ("auto", "auto"):
        load = load.on(read_ran_on(options.out))  # the backend of the stopped job
    row_options = ClassifyOptions(
        top_k=options.top_k,
        fast=options.preprocess == "fast",
        depth="openclip" if options.preprocess == "openclip" else None,
        flag_unknown=options.flag_unknown,
    )
    classifier = Classifier(load_backend(options.model, load))
    resizer = None
    if options.preprocess == "device":
        resizer = DeviceResizer(classifier.manifest.preprocessing)
    batch_size, chosen = options.batch_size, ""
    if batch_size == "auto" and options.resume and part_path(options.out).is_file():
        batch_size = None  # uses the batch size of the stopped job
    if batch_size == "auto":
        batch_size = choose_batch_size(classifier.backend)
        chosen = f", batches of {batch_size}"
    say(f"{options.model}: {classifier.description}{chosen}")
    runner = None
    if options.ray:
        if not options.gpus_per_worker:  # workers use the backend that this machine selected
            load = load.on(classifier.ran_on)
        settings = options.workers, options.gpus_per_worker
        runner = _run_on_ray(options.model, classifier, settings, load, row_options, batch_size)
    processes = options.decode_processes
    if processes is None:
        in_threads = options.workers or options.preprocess == "device"
        processes = 0 if in_threads else decode_processes(total)
    progress, left_out = Progress(total), LeftOut()
    summary = classify_files(
        classifier,
        find_images(options.paths, left_out),
        options.out,
        row_options,
        batch_size=batch_size,
        workers=options.workers,
        decode_processes=processes,
        resizer=resizer,
        resume=options.resume,
        progress=progress,
        runner=runner,
    )
    summary.left_out = dict(left_out)
    progress.finish(summary)
    if options.json:
        rate = {"images_per_second": summary.images_per_second}
        print(printable_json(dataclasses.asdict(summary) | rate))


def _run_on_ray(
    model: Path,
    classifier: Classifier,
    settings: tuple[int | None, float],
    load: LoadOptions,
    row_options: ClassifyOptions,
    batch_size: int | None,
) -> Runner:
    from fedapt_runtime.ray_runner import TASK_SIZE, RaySettings, predict_on_ray

    preprocessing = classifier.preprocessing(row_options.depth)
    size = batch_size or TASK_SIZE

    def predict(images: Iterable[Image]) -> Iterator[dict[str, Any]]:
        return predict_on_ray(
            model, images, preprocessing, RaySettings(*settings), load, row_options, size
        )

    return predict
