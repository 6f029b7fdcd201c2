"""`fedapt compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import fedapt
from fedapt.cli.options import (
    DeviceOption,
    JsonOption,
    OverrideOption,
    PresetOption,
    setting_option,
)
from fedapt.cli.show import console_reporter, percent, print_json, print_table
from fedapt.core.errors import UsageError
from fedapt.core.presets import RECOMMENDED

if TYPE_CHECKING:
    from fedapt.comparison.table import Row, Spread


def compare(
    data: Annotated[Path, typer.Option(help="ROOT of ROOT/<domain>/<class>/<images>, or a table.")],
    out: Annotated[Path, typer.Option(help="The folder to write; finished cells in it are kept.")],
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas, or all; see `fedapt methods`.")
    ] = "zero-shot,local,promptfl,fedapt",
    protocols: Annotated[
        str,
        typer.Option(
            help="Comma-separated: in-domain, leave-one-out, dirichlet, few-shot; or all."
        ),
    ] = "in-domain",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds; they start at 0.")] = 3,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Learning rates, separated by commas; each run keeps one (default: train.lr)."
        ),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Share of training images that choose round and learning rate (0.2)."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
    model: Annotated[str | None, setting_option("model.name")] = None,
    pretrained: Annotated[str | None, setting_option("model.pretrained")] = None,
    rounds: Annotated[int | None, setting_option("train.rounds")] = None,
    override: OverrideOption = None,
    preset: PresetOption = RECOMMENDED,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that train side by side, each on one core.")
    ] = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train methods under one budget; write results.json, results.csv and report.html."""
    with console_reporter("finished cells are kept; the same command continues") as reporter:
        comparison = fedapt.compare(
            data,
            out,
            methods=_split(methods),
            protocols=_split(protocols),
            seeds=seeds,
            lrs=() if lr is None else _parse_rates(lr),
            settings=config,
            overrides=override or (),
            device=device,
            reporter=reporter,
            validation=validation,
            model=model,
            pretrained=pretrained,
            rounds=rounds,
            preset=preset,
            processes=processes,
        )
        from fedapt.comparison.table import build_rows
    if as_json:
        print_json(json.loads((out / "results.json").read_text("utf-8"))["rows"])
        return
    rows = build_rows(comparison)
    for protocol in comparison.plan.protocols:
        _show([row for row in rows if row.protocol == protocol], protocol, comparison.domains)


def _show(rows: list[Row], protocol: str, domains: tuple[str, ...]) -> None:
    from fedapt.comparison.table import show_rates

    print_table(
        f"{protocol}: test accuracy, %",
        ["method", *domains, "mean", "routed", "lr", "trained", "of CLIP", "MB a round", "seconds"],
        [
            [
                row.title + (f" ({len(row.errors)} diverged)" if row.errors else ""),
                *(_show_spread(row.domains[d]) if d in row.domains else "" for d in domains),
                _show_spread(row.mean) if row.mean else "",
                percent(row.routed.mean) if row.routed else "",
                show_rates(row),
                f"{row.parameters:,}",
                f"{100 * row.share:.2f} %",
                f"{row.bytes_per_round / 1e6:.2f}",
                f"{row.seconds:.1f}",
            ]
            for row in rows
        ],
    )


def _show_spread(spread: Spread) -> str:
    return f"{percent(spread.mean)} ± {percent(spread.std)}"


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _parse_rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(dict.fromkeys(float(rate) for rate in _split(text)))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate <= 1000 for rate in rates):
        raise UsageError(
            where="--lr",
            found=repr(text),
            expected="numbers above 0, separated by commas, such as 0.01,0.1",
            next_step="correct the list",
        )
    return rates
