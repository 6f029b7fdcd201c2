"""`fedapt export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedapt.cli.options import CheckpointArgument, JsonOption
from fedapt.cli.show import console_reporter, percent, print_json, print_table

if TYPE_CHECKING:
    from fedapt_export.parity import Parity


def export(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option(help="The .onnx file to write, or the head's .safetensors.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Images for the parity report [those of the training run]."),
    ] = None,
    parity_images: Annotated[
        int, typer.Option(min=0, help="Test images to compare; 0 takes all.")
    ] = 128,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of unchanged best classes.")
    ] = 0.98,
    head_only: Annotated[
        bool, typer.Option("--head-only", help="Write what follows the image tower alone.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fuse a checkpoint with its CLIP into one ONNX file, and prove that it computes the same."""
    with console_reporter() as reporter:
        from fedapt_export.export import export as run_export

        parity = run_export(
            checkpoint,
            out,
            data=data,
            parity_images=parity_images,
            least_agreement=min_agreement,
            reporter=reporter,
            head_only=head_only,
        )
        reporter.message(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    if as_json:
        print_json(parity.to_dict())
    else:
        show_parity(parity)


def show_parity(parity: Parity) -> None:
    """The parity report as a table."""
    features = f"unit features, torch against ONNX, batches of {str(parity.batch_sizes)[1:-1]}"
    rows = [
        [features, f"{parity.feature_difference:.1e}"],
        ["probabilities, torch against ONNX", f"{parity.probability_difference:.1e}"],
        ["images routed one-hot (largest weight > 0.99), %", percent(parity.one_hot)],
        ["same best class as under exact prompts, %", f"{100 * parity.agreement:.2f}"],
        ["logits, fused against exact prompts", f"{parity.exact_logit_difference:.2g}"],
        ["probabilities, fused against exact", f"{parity.exact_probability_difference:.2g}"],
    ]
    print_table(f"Parity on {parity.source}", ["largest difference, or share", ""], rows)
