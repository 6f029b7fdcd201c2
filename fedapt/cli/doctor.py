"""`fedapt doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedapt.cli.options import JsonOption
from fedapt.cli.show import console_reporter, print_json, print_table

if TYPE_CHECKING:
    from fedapt_runtime.doctor import Finding


def doctor(as_json: JsonOption = False) -> None:
    """List installed packages and GPUs, and how to install the missing ones."""
    with console_reporter():
        from fedapt_export.doctor import examine

        findings = examine()
    if as_json:
        print_json([finding.to_dict() for finding in findings])
        return
    rows = [[f.name, "yes" if f.is_there else "no", _text(f)] for f in findings]
    print_table("Packages and GPUs", ["", "found", ""], rows, figures=False)


def _text(finding: Finding) -> str:
    return finding.detail if finding.is_there else f"{finding.detail}: {finding.install}"
