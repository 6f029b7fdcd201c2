"""`fedapt data emoji` and `fedapt data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.options import JsonOption
from fedapt.cli.show import console_reporter, print_json, print_table

app = typer.Typer(help="Make and check folders of images.", no_args_is_help=True)
_MAX_SHOWN = 20


@app.command("emoji")
def emoji(
    out: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    as_json: JsonOption = False,
) -> None:
    """Build the demo data: the same emoji in four styles."""
    with console_reporter() as reporter:
        from fedapt.data.emoji import build_emoji_set
        from fedapt.data.folders import scan_folders

        build_emoji_set(out, reporter)
    folders = scan_folders(out)
    counts = {domain: len(samples) for domain, samples in folders.samples.items()}
    if as_json:
        print_json({"images": counts, "classes": list(folders.class_names)})
    else:
        print(
            f"{out}: {sum(counts.values())} images, {len(counts)} domains,"
            f" {len(folders.class_folders)} classes; licences in {out / 'ATTRIBUTION.md'}"
        )


@app.command("check")
def check(
    root: Annotated[Path, typer.Argument(help="ROOT of ROOT/<domain>/<class>/<images>.")],
    as_json: JsonOption = False,
) -> None:
    """Count images per domain and class, and list every problem (exit code 4)."""
    with console_reporter() as reporter:
        from fedapt.data.check import FEW_IMAGES, check_data
        from fedapt_runtime.formats import describe_left_out

        report = check_data(root, reporter)
    if as_json:
        print_json(report.to_dict())
    else:
        domains = list(report.counts)
        classes = list(report.counts[domains[0]])
        rows = [[c, *(str(report.counts[d][c]) for d in domains)] for c in classes]
        rows.append(["all", *(str(sum(report.counts[d].values())) for d in domains)])
        print_table(f"Images in {root}", ["class", *domains], rows)
        _list("cannot be read", report.unreadable)
        _list("has no images", report.missing)
        _list(f"has fewer than {FEW_IMAGES} images", report.few)
        _list("is not an image of a class and is not used", report.stray)
        if report.left_out:
            print(f"left out: {describe_left_out(report.left_out)}")
        print("sound" if report.is_sound else "not sound")
    if not report.is_sound:
        raise typer.Exit(4)


def _list(problem: str, names: tuple[str, ...]) -> None:
    for name in names[:_MAX_SHOWN]:
        print(f"{problem}: {name}")
    if len(names) > _MAX_SHOWN:
        print(f"{problem}: {len(names) - _MAX_SHOWN} more (--json lists all)")
