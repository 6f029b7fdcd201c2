"""`fedapt-runtime check`: a TensorRT engine against its model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedapt_runtime.cli.messages import show
from fedapt_runtime.printable import printable_json


def add_check(commands: Any) -> None:
    """Add the command to the parser of `fedapt-runtime`."""
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


def run_check(options: argparse.Namespace) -> None:
    """`fedapt-runtime check`."""
    from fedapt_runtime.engine_check import check_engine

    report = check_engine(options.engine, options.against, options.images)
    if options.json:
        print(printable_json(report.to_dict(), indent=2))
        return
    show(f"{options.engine} matches {options.against}")
    show(f"batches of {', '.join(map(str, report.batch_sizes))}, on {report.images}")
    for name, value in (
        ("TensorRT against ONNX Runtime", report.probability_difference),
        ("rows of one image in a batch", report.repeated_difference),
        ("images in another order", report.permuted_difference),
    ):
        print(f"{name:28} {value:.1e}  largest difference of class probabilities")
