"""`fedapt export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedapt.cli.options import CheckpointArgument, JsonOption
from fedapt.cli.show import console_reporter, percent, print_json, print_table
from fedapt.core.errors import UsageError

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
    trt: Annotated[
        bool,
        typer.Option("--trt", help="Also build an .engine with TensorRT-RTX; no GPU needed."),
    ] = False,
    compute_capability: Annotated[
        str, typer.Option(help="Targets of the engine, such as sm89,sm120 [the library's own].")
    ] = "",
    min_batch: Annotated[int, typer.Option(help="Smallest batch of the engine.")] = 1,
    opt_batch: Annotated[int, typer.Option(help="The batch that the engine is tuned for.")] = 32,
    max_batch: Annotated[int, typer.Option(help="Largest batch of the engine.")] = 128,
    as_json: JsonOption = False,
) -> None:
    """Fuse a checkpoint with its CLIP into one ONNX file, and prove that it computes the same."""
    if trt and head_only:
        raise UsageError(
            where="--trt and --head-only",
            found="both",
            expected="one of them: an engine needs the whole graph",
            next_step="leave one out",
        )
    with console_reporter() as reporter:
        from fedapt_export.engine import EngineSettings, build_engine, check_library
        from fedapt_export.export import export as run_export

        targets = tuple(name.strip().lower() for name in compute_capability.split(",") if name)
        settings = EngineSettings(targets, min_batch, opt_batch, max_batch)
        if trt:  # what cannot work is refused before the work
            settings.check()
            check_library()
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
        if trt:
            engine = out.with_suffix(".engine")
            sidecar = build_engine(out, engine, settings)
            reporter.message(
                f"written: {engine} ({engine.stat().st_size / 1e6:.1f} MB, TensorRT-RTX"
                f" {sidecar['library']['version']}, {', '.join(sidecar['compute_capabilities'])});"
                " not run, which takes its GPU"
            )
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
