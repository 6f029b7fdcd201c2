"""`fedapt federation train`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedapt.cli.show import Interrupted, percent, shown
from fedapt.core.errors import FederationError
from fedapt_runtime.printable import printable, printable_json

if TYPE_CHECKING:
    from fedapt.federation.flower.follow import Federation


def train(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with server.toml.")],
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for a server that does not answer.")
    ] = 30.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every event as a line of JSON.")
    ] = False,
) -> None:
    """Train with the connected nodes; continue an earlier run that stopped."""
    from fedapt.federation.flower import require_flower

    require_flower()
    from fedapt.federation.flower.follow import Federation, follow
    from fedapt.federation.flower.operator import is_running, request_training
    from fedapt.run.deployment import LIVE, read_deployment

    settings, _ = read_deployment(folder)
    live = folder / settings.out / LIVE
    offset = live.stat().st_size if live.is_file() else 0
    started = time.monotonic()
    while not is_running(folder):
        if time.monotonic() - started > wait:
            raise FederationError(
                where=f"the server {settings.address}",
                found=f"no answer: no server of {folder} runs on this machine",
                expected="a running server",
                next_step=f"start it: fedapt federation server {folder}",
            )
        time.sleep(0.5)
    request_training(folder)
    federation = Federation()
    console = Console(stderr=True)
    try:
        if console.is_terminal and not as_json:
            with Live(console=console, auto_refresh=False) as view:
                for line in _watch(folder, settings.address, follow(live, offset), federation):
                    if notice := find_notice(line):
                        view.console.print(notice, markup=False, highlight=False, soft_wrap=True)
                    view.update(draw(federation), refresh=True)
        else:
            for line in _watch(folder, settings.address, follow(live, offset), federation):
                if as_json:
                    print(printable_json(line), flush=True)
                if text := find_notice(line) or ("" if as_json else describe_round(line)):
                    print(text, file=sys.stderr, flush=True)
    except KeyboardInterrupt as stop:
        raise Interrupted from stop
    if federation.end == "failed":
        raise FederationError(
            where=f"the run {folder / settings.out}",
            found=federation.reason,
            expected="a training that finishes",
            next_step="remove the cause and run this command again: training continues",
        )
    print(f"written: {folder / settings.out / 'checkpoint.safetensors'}", file=sys.stderr)


def _watch(
    folder: Path,
    address: str,
    lines: Iterator[dict[str, Any] | None],
    federation: Federation,
) -> Iterator[dict[str, Any]]:
    """Yield events to the end of the run, after adding each to the federation.

    Raises:
        FederationError: the server has ended, or has stopped without a final event.
    """
    from fedapt.federation.flower.operator import is_at_work, is_running, withdraw_request

    while not federation.end:
        is_over = not is_at_work(folder)  # asked before the last lines are read
        line = next(lines)
        if line is not None:
            federation.add(line)
            yield line
        elif is_over:
            withdraw_request(folder)
            gone = not is_running(folder)
            raise FederationError(
                where=f"the server {address}",
                found="no answer: its process has ended"
                if gone
                else "a training that stopped early",
                expected="a final event of the run",
                next_step="start it and run this command again: it continues where it stopped"
                if gone
                else "see the server's log",
            )


def describe_round(line: Mapping[str, Any]) -> str:
    """A finished round in one line; empty for any other event."""
    if line["event"] != "round":
        return ""
    record = line["record"]
    text = f"round {record['round']} of {line['rounds']}: {record.get('replies', 0)} replies"
    text += f", loss {record['loss']:.3f}, {record.get('bytes_sent', 0) / 1e6:.2f} MB"
    text += f", {record['seconds']:.1f} s"
    if "mean_accuracy" in record:
        text += f", mean accuracy {percent(record['mean_accuracy'])} %"
    return text


def find_notice(line: Mapping[str, Any]) -> str:
    """The text of an event that needs the operator's attention; empty for any other event."""
    if line["event"] == "turned away":
        return printable(f"turned away: {line['name']}: {line['reason']}")
    return printable(line["text"]) if line["event"] == "waiting" else ""


def draw(federation: Federation) -> Table:
    """Rounds and nodes as a table."""
    last = federation.records[-1] if federation.records else {}
    title = f"round {last.get('round', 0)} of {federation.rounds or '?'}"
    if last:
        title += f", loss {last['loss']:.3f}, {last['bytes_sent'] / 1e6:.2f} MB a round"
    table = Table(title=title)
    for column in ("node", "domain", "last seen", "images", "seconds", "refused", "accuracy", ""):
        table.add_column(column, justify="left" if column in ("node", "domain", "") else "right")
    for name, node in sorted(federation.nodes.items()):
        accuracy = federation.accuracy.get(node.domain)
        table.add_row(
            shown(name),
            shown(node.domain),
            time.strftime("%H:%M:%S", time.localtime(node.seen)) if node.seen else "",
            "" if node.images is None else f"{node.images:,}",
            f"{node.seconds:.1f}",
            str(node.refused),
            "" if accuracy is None else percent(accuracy),
            shown(node.reason),
        )
    return table
