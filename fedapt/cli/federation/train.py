"""`fedapt federation train`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedapt.cli.show import Interrupted, percent
from fedapt.core.errors import FederationError

if TYPE_CHECKING:
    from fedapt.federation.flower.follow import Federation

_CHECK_S = 5.0


def train(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with server.toml.")],
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for a server that does not answer.")
    ] = 30.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every event as a line of JSON.")
    ] = False,
) -> None:
    """Train with the nodes that are connected; goes on where an earlier run was stopped."""
    from fedapt.federation.flower import require_flower

    require_flower()
    from fedapt.federation.flower.control import Control
    from fedapt.federation.flower.files import APP
    from fedapt.federation.flower.follow import Federation, follow
    from fedapt.run.deployment import read_deployment

    settings, _ = read_deployment(folder)
    live = folder / settings.out / "live.jsonl"
    offset = live.stat().st_size if live.is_file() else 0
    federation = Federation()
    started = time.monotonic()
    while True:
        try:
            with Control(folder, settings) as control:
                run_id = control.start_run(folder / APP)
            break
        except ConnectionError as error:
            if time.monotonic() - started > wait:
                raise FederationError(
                    where=f"the server {settings.address}",
                    found=f"no answer ({error})",
                    expected="a server that runs",
                    next_step=f"start it: fedapt federation server {folder}",
                ) from error
            time.sleep(1.0)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    try:
        with Live(console=console, auto_refresh=False, transient=False) as view:
            checked = time.monotonic()
            for line in follow(live, offset):
                if line is not None:
                    federation.add(line)
                    if notice := find_notice(line):
                        view.console.print(notice, markup=False, highlight=False, soft_wrap=True)
                    if as_json:
                        print(json.dumps(line, ensure_ascii=False), flush=True)
                    if console.is_terminal or federation.end:
                        view.update(draw(federation), refresh=True)
                elif time.monotonic() - checked > _CHECK_S and not federation.end:
                    checked = time.monotonic()
                    _check_running(folder, settings, run_id)
                if federation.end:
                    break
    except KeyboardInterrupt as stop:
        raise Interrupted from stop
    console.print()
    if federation.end == "failed":
        raise FederationError(
            where=f"run {run_id}",
            found=federation.reason,
            expected="a federation that trains to its end",
            next_step="see to it, and run this command again: it goes on where it was",
        )
    print(f"written: {folder / settings.out / 'checkpoint.safetensors'}", file=sys.stderr)


def find_notice(line: Mapping[str, Any]) -> str:
    """What the operator has to see to, of one event; empty where that is nothing."""
    if line["event"] == "turned away":
        return f"turned away: {line['name']}: {line['reason']}"
    return str(line["text"]) if line["event"] == "waiting" else ""


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
            name,
            node.domain,
            time.strftime("%H:%M:%S", time.localtime(node.seen)) if node.seen else "",
            "" if node.images is None else f"{node.images:,}",
            f"{node.seconds:.1f}",
            str(node.refused),
            "" if accuracy is None else percent(accuracy),
            node.reason,
        )
    return table


def _check_running(folder: Path, settings: object, run_id: int) -> None:
    """A server that was killed writes no last line.

    Raises:
        FederationError: the run is over, or the server is gone.
    """
    from fedapt.federation.flower.control import Control

    found = "no answer"
    try:
        with Control(folder, settings) as control:  # type: ignore[arg-type]
            status, outcome = control.find_status(run_id)
        if status != "finished":
            return
        found = f"a run that is over: {outcome}"
    except ConnectionError as error:
        found = f"no answer ({error})"
    raise FederationError(
        where=f"run {run_id}",
        found=found,
        expected="a run that says how it ended",
        next_step="see the server's own messages, and run this command again: it goes on",
    )
