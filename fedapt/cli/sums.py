"""`fedapt sums`: change a federation of sums without training again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.options import CheckpointArgument, JsonOption
from fedapt.cli.show import console_reporter, print_json, print_table

app = typer.Typer(
    help="Change an adaptive-analytic checkpoint without training: domains and classes.",
    no_args_is_help=True,
)

OutOption = Annotated[Path, typer.Option(help="The checkpoint.safetensors to write.")]
OtherArgument = Annotated[
    Path, typer.Argument(help="Another adaptive-analytic checkpoint of the same CLIP and classes.")
]


@app.command("join")
def join(
    checkpoint: CheckpointArgument,
    other: OtherArgument,
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Add the domains of OTHER, which a party has trained by itself."""
    _change("join", checkpoint, other, out, as_json)


@app.command("leave")
def leave(
    checkpoint: CheckpointArgument,
    domain: Annotated[str, typer.Argument(help="The domain that leaves.")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Remove a domain: nothing of its images is left in the result."""
    _change("leave", checkpoint, domain, out, as_json)


@app.command("subtract")
def subtract(
    checkpoint: CheckpointArgument,
    other: OtherArgument,
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Remove the images of OTHER from domains that keep further images."""
    _change("subtract", checkpoint, other, out, as_json)


@app.command("add-class")
def add_class(
    checkpoint: CheckpointArgument,
    name: Annotated[str, typer.Argument(help="The class, as in its folder's name.")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Add a class that no image shows yet; domains that have such images can join then."""
    _change("add_class", checkpoint, name, out, as_json)


def _change(function: str, checkpoint: Path, other: Path | str, out: Path, as_json: bool) -> None:
    """Apply a function of `fedapt.run.sums`, and write and show the result.

    Args:
        other: a second checkpoint, or the name of a domain or class.
    """
    with console_reporter():
        from fedapt.model.checkpoint import Checkpoint, load_checkpoint
        from fedapt.run import sums

        argument = load_checkpoint(other) if isinstance(other, Path) else other
        result: Checkpoint = getattr(sums, function)(load_checkpoint(checkpoint), argument)
        result.save(out)
        counts = sums.count_images(result)
        if as_json:
            print_json({"images": counts, "classes": result.info.classes})
            return
        rows = [[name, str(count)] for name, count in counts.items()]
        columns = ["domain", "training images"]
        print_table(f"{out}: {len(result.info.classes)} classes", columns, rows)
