"""`fedapt compare`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedapt.cli.options import (
    DeviceOption,
    JsonOption,
    OverrideOption,
    resolve_name,
    setting_option,
)
from fedapt.cli.show import console_reporter, percent, print_json, print_table
from fedapt.core.config import read_config
from fedapt.core.errors import DependencyError, UsageError
from fedapt.core.files import claim_folder, write_text
from fedapt.core.names import METHODS

if TYPE_CHECKING:
    from fedapt.compare.table import Row, Spread

_VALIDATION = 0.2


def compare(
    data: Annotated[Path, typer.Option(help="ROOT of ROOT/<domain>/<class>/<images>.")],
    out: Annotated[Path, typer.Option(help="The folder to write; a finished cell is kept.")],
    methods: Annotated[
        str, typer.Option(help="Names by commas, or all; see `fedapt methods`.")
    ] = "zero-shot,local,promptfl,fedapt",
    protocols: Annotated[
        str, typer.Option(help="Of in-domain, leave-one-out, dirichlet, few-shot; or all.")
    ] = "in-domain",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")] = 3,
    lr: Annotated[
        str | None,
        typer.Option(help="Learning rates by commas; each run takes its best (train.lr alone)."),
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
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train methods under one budget; writes results.json, results.csv and report.html."""
    named = {
        "data.root": str(data.resolve()),
        "data.validation_fraction": validation,
        "model.name": resolve_name(model),
        "model.pretrained": resolve_name(pretrained),
        "train.rounds": rounds,
    }
    settings = read_config(config, override or (), named)
    if validation is None and not settings.data.validation_fraction:
        data_config = dataclasses.replace(settings.data, validation_fraction=_VALIDATION)
        settings = dataclasses.replace(settings, data=data_config)
    rates = (settings.train.lr,) if lr is None else _parse_rates(lr)
    with console_reporter() as reporter, claim_folder(out):
        from fedapt.compare.plan import PROTOCOLS, Plan, shared_settings
        from fedapt.compare.run import compare as run_comparison
        from fedapt.compare.table import build_rows, to_csv, to_json

        try:
            from fedapt.compare.report import write_report
        except ImportError as error:
            raise DependencyError(
                where="fedapt compare",
                found=f"no module {error.name}",
                expected="the packages of the extra `pages`",
                next_step="pip install 'fedapt[cpu,pages]'",
            ) from error
        plan = Plan(
            methods=tuple(METHODS) if methods == "all" else _split(methods),
            protocols=PROTOCOLS if protocols == "all" else _split(protocols),
            seeds=tuple(range(seeds)),
            rates=rates,
        )
        comparison = run_comparison(settings, plan, out, device, reporter)
        rows = build_rows(comparison)
        results = to_json(comparison, rows, shared_settings(settings))
        write_text(out / "results.json", json.dumps(results) + "\n")
        write_text(out / "results.csv", to_csv(comparison))
        write_report(comparison, rows, settings, out / "report.html")
        reporter.message(f"written: {out / 'report.html'}, results.csv, results.json")
    if as_json:
        print_json(results["rows"])
        return
    for protocol in plan.protocols:
        _show([row for row in rows if row.protocol == protocol], protocol, comparison.domains)


def _show(rows: list[Row], protocol: str, domains: tuple[str, ...]) -> None:
    from fedapt.compare.table import show_rates

    print_table(
        f"{protocol}: test accuracy, %",
        ["method", *domains, "mean", "lr", "trained", "of CLIP", "MB a round", "seconds"],
        [
            [
                row.title + (f" ({len(row.errors)} diverged)" if row.errors else ""),
                *(_show_spread(row.domains[d]) if d in row.domains else "" for d in domains),
                _show_spread(row.mean) if row.mean else "",
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
            expected="numbers above 0 by commas, such as 0.01,0.1",
            next_step="correct them",
        )
    return rates
