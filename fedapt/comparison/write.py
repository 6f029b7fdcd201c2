"""A comparison with its files: results.json, results.csv and report.html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedapt.comparison.plan import Plan, shared_settings
from fedapt.comparison.run import Comparison, compare
from fedapt.comparison.table import Row, build_rows, to_csv, to_json
from fedapt.core.config import Config
from fedapt.core.errors import DependencyError
from fedapt.core.files import claim_folder, write_text
from fedapt.core.report import Reporter


def write_comparison(
    config: Config, plan: Plan, out: Path, device: str, reporter: Reporter, processes: int = 1
) -> tuple[Comparison, list[Row], dict[str, Any]]:
    """Compare, and write the results; finished cells are kept, see `run.compare`.

    Returns:
        The comparison, its rows, and the content of results.json.

    Raises:
        DependencyError: the packages of the page are not installed. No cell has run.
        ReportedError: see `run.compare`.
    """
    try:
        from fedapt.comparison.report import write_report
    except ImportError as error:
        raise DependencyError(
            where="the comparison's page",
            found=f"no module {error.name}",
            expected="the packages of the extra `pages`",
            next_step="pip install 'fedapt[cpu,pages]'",
        ) from error
    with claim_folder(out):
        comparison = compare(config, plan, out, device, reporter, processes)
        rows = build_rows(comparison)
        results = to_json(comparison, rows, shared_settings(config))
        write_text(out / "results.json", json.dumps(results) + "\n")
        write_text(out / "results.csv", to_csv(comparison))
        write_report(comparison, rows, config, out / "report.html")
    reporter.message(f"written: {out / 'report.html'}, results.csv, results.json")
    return comparison, rows, results
