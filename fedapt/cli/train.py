"""`fedapt train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.evaluate import show_evaluation
from fedapt.cli.options import DeviceOption, JsonOption, resolve_name
from fedapt.cli.show import console_reporter, print_json
from fedapt.core.config import read_config


def train(
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    data: Annotated[
        Path | None, typer.Option(help="ROOT of ROOT/<domain>/<class>/<images>.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
    model: Annotated[
        str | None, typer.Option(help="lite, an OpenCLIP name, a folder, or hf-hub:NAME.")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Pretrained tag or weights file of an OpenCLIP name.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="What to train; see `fedapt methods` (fedapt).")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of federation (50).")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (0.01).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step (256).")] = None,
    context_length: Annotated[int | None, typer.Option(help="Context tokens M (24).")] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature tau (0.01).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run (0).")] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of training images that choose the round (0).")
    ] = None,
    join: Annotated[
        Path | None, typer.Option(help="Go on from a federation's checkpoint, with new domains.")
    ] = None,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Also log to tensorboard, mlflow or wandb.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="Set section.key=value.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Who runs the clients: local, or flower for its simulation.")
    ] = "local",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from OUT's checkpoint, with its settings.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train one prompt together: one client per domain folder."""
    named = {
        "data.root": None if data is None else str(data.resolve()),
        "model.name": resolve_name(model),
        "model.pretrained": resolve_name(pretrained),
        "data.validation_fraction": validation,
        "federation.join": None if join is None else str(join.resolve()),
        "train.method": method,
        "train.rounds": rounds,
        "train.lr": lr,
        "train.batch_size": batch_size,
        "prompt.context_length": context_length,
        "prompt.temperature": temperature,
        "train.seed": seed,
    }
    written = out / "config.toml"
    if resume and config is None and written.is_file():
        config = written  # a run goes on with the settings that it began with
    settings = read_config(config, override or (), named)
    with console_reporter() as reporter:
        from fedapt.run.train import train as run_training

        evaluation = run_training(
            settings,
            out,
            resume=resume,
            device=device,
            reporter=reporter,
            trackers=tuple(tracker or ()),
            engine=engine,
        )
        reporter.message(f"written: {out / 'checkpoint.safetensors'}")
    if as_json:
        print_json(evaluation.to_dict())
    else:
        show_evaluation(evaluation, str(out))
