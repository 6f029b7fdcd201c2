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
    from fedapt_export.precision import PrecisionReport

_TRT = "TensorRT"


def export(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="The .onnx file to write, or the .safetensors file of --head-only."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Images for the reports (default: those of the training run)."),
    ] = None,
    parity_images: Annotated[
        int, typer.Option(min=0, help="Test images to compare; 0 takes all.")
    ] = 128,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Minimum share of images that keep their class.")
    ] = 0.98,
    head_only: Annotated[
        bool, typer.Option("--head-only", help="Write the head only, without the image tower.")
    ] = False,
    client: Annotated[
        str,
        typer.Option(help="Client whose model is exported, for methods with a model per client."),
    ] = "",
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Fit the probabilities to the run's validation images."),
    ] = False,
    mixing: Annotated[
        str,
        typer.Option(help="Mixing of text banks: exact, or hard (the domain with the max weight)."),
    ] = "exact",
    precision: Annotated[
        str,
        typer.Option(
            help="Precision of the image tower: fp32, fp16, bf16, int8, or fp16-weights (stored in"
            " fp16, computed in fp32)."
        ),
    ] = "fp32",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Images that set the scales of int8 (default: the training images)."),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(min=0, help="Number of calibration images; 0 takes all.")
    ] = 128,
    reduced_range: Annotated[
        bool,
        typer.Option("--reduced-range", help="Weights of int8 in 7 bits, for x86 without VNNI."),
    ] = False,
    operators: Annotated[
        str,
        typer.Option(
            help="Operators of the graph: onnx, or onnxruntime (faster on a GPU, no other library)."
        ),
    ] = "onnx",
    max_disagreement: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Maximum share of changed labels (default depends on the precision)."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write the file even if it is slower here or changes too many labels."
        ),
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option(help="Also write a Triton model repository into this folder."),
    ] = None,
    web: Annotated[
        Path | None,
        typer.Option(help="Also write a static page that runs the model in browsers."),
    ] = None,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(help="ONNX Runtime Web, a folder or .tgz (default: from npm)."),
    ] = None,
    trt: Annotated[
        bool, typer.Option("--trt", help="Also build a TensorRT engine.", rich_help_panel=_TRT)
    ] = False,
    trt_flavour: Annotated[
        str,
        typer.Option(
            help="TensorRT library: rtx (needs no GPU), tensorrt (needs its GPU) or auto.",
            rich_help_panel=_TRT,
        ),
    ] = "auto",
    compute_capability: Annotated[
        str,
        typer.Option(
            help="Target GPUs of rtx, such as sm89,sm120 (default: the library's).",
            rich_help_panel=_TRT,
        ),
    ] = "",
    min_batch: Annotated[
        int, typer.Option(help="Min batch size of the TensorRT engine.", rich_help_panel=_TRT)
    ] = 1,
    opt_batch: Annotated[
        int, typer.Option(help="Opt batch size of the TensorRT engine.", rich_help_panel=_TRT)
    ] = 32,
    max_batch: Annotated[
        int, typer.Option(help="Max batch size of the TensorRT engine.", rich_help_panel=_TRT)
    ] = 128,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="Timing cache of tensorrt, read and written.", rich_help_panel=_TRT),
    ] = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit", help="Allow later replacement of weights (tensorrt).", rich_help_panel=_TRT
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint and its CLIP as one ONNX file, and verify the file."""
    out = out or _model_of_page(web)
    if onnxruntime_web is not None and web is None:
        raise UsageError(
            where="--onnxruntime-web",
            found="a command without --web",
            expected="--web DIR, whose page uses ONNX Runtime Web",
            next_step="add --web, or remove this option",
        )
    if not trt:
        _check_no_engine(context, triton is not None)
    with console_reporter() as reporter:
        from fedapt_export.deliver import deliver
        from fedapt_export.engine import EngineSettings
        from fedapt_export.settings import ExportSettings

        targets = tuple(name.strip().lower() for name in compute_capability.split(",") if name)
        settings = ExportSettings(
            data=data,
            parity_images=parity_images,
            min_agreement=min_agreement,
            reduced_range=reduced_range,
            head_only=head_only,
            client=client,
            calibrate=calibrate,
            mixing=mixing,
            precision=precision,
            calibration=calibration,
            calibration_images=calibration_images,
            operators=operators,
            max_disagreement=max_disagreement,
            force=force,
        )
        engine = EngineSettings(
            trt_flavour, targets, min_batch, opt_batch, max_batch, timing_cache, refit
        )
        delivered = deliver(
            checkpoint,
            out,
            settings,
            reporter,
            engine=engine,
            trt=trt,
            triton=triton,
            web=web,
            onnxruntime_web=onnxruntime_web,
        )
    exported = delivered.exported
    if as_json:
        print_json(exported.to_dict())
        return
    show_parity(exported.parity)
    if exported.precision is not None:
        _show_precision(exported.precision)
    show_verdict(out, exported.parity, min_agreement)


def _model_of_page(web: Path | None) -> Path:
    """Path of a model that only the page needs.

    Raises:
        UsageError: no page is requested.
    """
    if web is None:
        raise UsageError(
            where="--out",
            found="a command without --out and --web",
            expected="--out FILE, or --web DIR, which holds the model",
            next_step="add one of them",
        )
    return web / "model.onnx"


def _check_no_engine(context: typer.Context, triton: bool) -> None:
    """Refuse engine options if no engine is built.

    Raises:
        UsageError: such an option is given without --trt.
    """
    read = ("opt_batch", "max_batch") if triton else ()
    for option in context.command.params:
        source = context.get_parameter_source(str(option.name))
        is_of_engine = getattr(option, "rich_help_panel", None) == _TRT and option.name not in read
        if is_of_engine and source is not None and source.name != "DEFAULT":
            raise UsageError(
                where=option.opts[0],
                found="a command without --trt",
                expected="--trt, which builds the TensorRT engine",
                next_step="add --trt, or remove this option",
            )


def show_parity(parity: Parity) -> None:
    """The parity report as a table."""
    features = f"unit features, torch against ONNX, batches {str(parity.batch_sizes)[1:-1]}"
    tower = parity.feature_difference
    rows = [] if tower is None else [[features, f"{tower:.1e}"]]
    rows += [
        ["probabilities, torch against ONNX", f"{parity.probability_difference:.1e}"],
        ["images routed one-hot (max weight > 0.99), %", percent(parity.one_hot)],
        ["same class as the method, %", f"{100 * parity.agreement:.2f}"],
        ["logits, fused against the method", f"{parity.exact_logit_difference:.2g}"],
        ["probabilities, fused against the method", f"{parity.exact_probability_difference:.2g}"],
    ]
    print_table(f"Parity on {parity.source}", ["max difference, or share", ""], rows)


def show_verdict(model: Path, parity: Parity, minimum: float) -> None:
    """The last line of a report that passed; one that did not is an error."""
    kept = f"{100 * parity.agreement:.2f} % of {parity.images} images keep their class"
    print(
        f"passed: {model} computes the results of its checkpoint ({kept}, min {100 * minimum:g} %)"
    )


def _show_precision(report: PrecisionReport) -> None:
    speed = "does not run here" if report.images_per_s is None else f"{report.images_per_s:.0f}"
    rows = [
        ["MB", f"{report.fp32_bytes / 1e6:.1f}", f"{report.bytes / 1e6:.1f}"],
        [f"images/s on {report.device}", f"{report.fp32_images_per_s:.0f}", speed],
        ["same class, %", "100.00", f"{100 * (1 - report.disagreement):.2f}"],
        ["unit features, max difference", "0", f"{report.feature_difference:.1e}"],
    ]
    rows += [
        [f"accuracy on {domain}, %", percent(found["fp32"]), percent(found["accuracy"])]
        for domain, found in report.by_domain.items()
    ]
    title = f"{report.precision} against fp32, {report.images} images"
    print_table(title, ["", "fp32", report.precision], rows)
