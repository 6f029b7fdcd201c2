"""`fedapt-runtime doctor`: packages and GPUs of this machine."""

from __future__ import annotations

import argparse
from typing import Any

from fedapt_runtime.cli.messages import show
from fedapt_runtime.doctor import examine
from fedapt_runtime.printable import printable_json


def add_doctor(commands: Any) -> None:
    """Add the command to the parser of `fedapt-runtime`."""
    doctor = commands.add_parser(
        "doctor", help="list packages and GPUs, and how to install the missing ones"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=run_doctor)


def run_doctor(options: argparse.Namespace) -> None:
    """`fedapt-runtime doctor`."""
    findings = examine()
    if options.json:
        print(printable_json([finding.to_dict() for finding in findings], indent=2))
        return
    for finding in findings:
        install = "" if finding.is_there else f": {finding.install}"
        works = "yes" if finding.is_there else "no"
        show(f"{finding.name:16} {works:4} {finding.detail}{install}")
