"""`fedapt sums`: change a federation of sums without training again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedapt.cli.options import CheckpointArgument, JsonOption
from fedapt.cli.show import console_reporter, print_json, print_table

if TYPE_CHECKING:
    from fedapt.model.checkpoint import Checkpoint

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
    with console_reporter():
        from fedapt.model.checkpoint import load_checkpoint
        from fedapt.run import sums

        _write(sums.join(load_checkpoint(checkpoint), load_checkpoint(other)), out, as_json)


@app.command("leave")
def leave(
    checkpoint: CheckpointArgument,
    domain: Annotated[str, typer.Argument(help="The domain that leaves.")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Remove a domain: nothing of its images is left in the result."""
    with console_reporter():
        from fedapt.model.checkpoint import load_checkpoint
        from fedapt.run import sums

        _write(sums.leave(load_checkpoint(checkpoint), domain), out, as_json)


@app.command("subtract")
def subtract(
    checkpoint: CheckpointArgument,
    other: OtherArgument,
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Remove the images of OTHER from domains that keep further images."""
    with console_reporter():
        from fedapt.model.checkpoint import load_checkpoint
        from fedapt.run import sums

        _write(sums.subtract(load_checkpoint(checkpoint), load_checkpoint(other)), out, as_json)


@app.command("add-class")
def add_class(
    checkpoint: CheckpointArgument,
    name: Annotated[str, typer.Argument(help="The class, as in its folder's name.")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Add a class that no image shows yet; domains that have such images can join then."""
    with console_reporter():
        from fedapt.model.checkpoint import load_checkpoint
        from fedapt.run import sums

        _write(sums.add_class(load_checkpoint(checkpoint), name), out, as_json)


def _write(result: Checkpoint, out: Path, as_json: bool) -> None:
    """Write a changed checkpoint and show the images of each domain."""
    from fedapt.run.sums import count_images

    result.save(out)
    counts = count_images(result)
    if as_json:
        print_json({"images": counts, "classes": result.info.classes})
        return
    rows = [[name, str(count)] for name, count in counts.items()]
    columns = ["domain", "training images"]
    print_table(f"{out}: {len(result.info.classes)} classes", columns, rows)
