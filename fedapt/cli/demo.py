"""`fedapt demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.options import JsonOption
from fedapt.cli.show import console_reporter, percent, print_json, print_table
from fedapt.core.errors import DependencyError
from fedapt.core.files import claim_folder


def demo(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("demo"),
    as_json: JsonOption = False,
) -> None:
    """Draw, train, export and classify four styles of emoji in a few minutes."""
    try:
        from fedapt.demo.report import write_report
        from fedapt.demo.run import run_demo
    except ImportError as error:
        raise DependencyError(
            where="fedapt demo",
            found=f"no module {error.name}",
            expected="the packages of the extra `demo`",
            next_step="pip install 'fedapt[cpu,demo]'",
        ) from error
    with console_reporter() as reporter, claim_folder(out):
        result = run_demo(out, reporter)
        write_report(result, out / "report.html")
    tables = result.tables()
    names = dict(zip(tables, ("zero_shot", "alone", "fedapt", "adaptive_analytic"), strict=True))
    shares = {names[title]: result.accuracy(items) for title, items in tables.items()}
    means = {names[title]: result.mean(items) for title, items in tables.items()}
    if as_json:
        print_json({"mean": means} | shares)
        return
    rows = [[d, *(percent(share[d]) for share in shares.values())] for d in result.domains]
    rows.append(["mean", *map(percent, means.values())])
    print_table(
        f"Accuracy on {len(result.fedapt)} test images, %, as the runtime measured it",
        ["domain", *tables],
        rows,
    )
    print(f"classify your images:  fedapt-runtime classify {result.model} PATH...")
    print(f"the report:            {out / 'report.html'}")
