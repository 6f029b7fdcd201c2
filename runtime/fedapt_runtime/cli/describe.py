"""`fedapt-runtime describe`: a model's metadata."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedapt_runtime.backends.choose import ENGINE_SUFFIX
from fedapt_runtime.backends.model_checks import read_manifest
from fedapt_runtime.classifier import Classifier
from fedapt_runtime.onnx_file import check_content, open_onnx
from fedapt_runtime.printable import printable_json


def add_describe(commands: Any) -> None:
    """Add the command to the parser of `fedapt-runtime`."""
    describe = commands.add_parser("describe", help="show a model's metadata as JSON")
    describe.add_argument("model", type=Path)
    describe.set_defaults(run=run_describe)


def run_describe(options: argparse.Namespace) -> None:
    """`fedapt-runtime describe`."""
    if options.model.suffix == ENGINE_SUFFIX:
        manifest = Classifier.load(options.model).manifest
    else:
        manifest = read_manifest(options.model)
        check_content(options.model, open_onnx(options.model))
    print(printable_json(manifest.describe(), indent=2))
