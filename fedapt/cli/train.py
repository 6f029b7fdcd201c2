"""`fedapt train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.evaluate import show_evaluation
from fedapt.cli.options import (
    DeviceOption,
    JsonOption,
    OverrideOption,
    resolve_name,
    setting_option,
)
from fedapt.cli.show import console_reporter, print_json
from fedapt.core.config import read_config


def train(
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    data: Annotated[
        Path | None, typer.Option(help="ROOT of ROOT/<domain>/<class>/<images>.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
    model: Annotated[str | None, setting_option("model.name")] = None,
    pretrained: Annotated[str | None, setting_option("model.pretrained")] = None,
    method: Annotated[str | None, setting_option("train.method")] = None,
    rounds: Annotated[int | None, setting_option("train.rounds")] = None,
    lr: Annotated[float | None, setting_option("train.lr")] = None,
    batch_size: Annotated[int | None, setting_option("train.batch_size")] = None,
    context_length: Annotated[int | None, setting_option("prompt.context_length")] = None,
    temperature: Annotated[float | None, setting_option("prompt.temperature")] = None,
    seed: Annotated[int | None, setting_option("train.seed")] = None,
    validation: Annotated[float | None, setting_option("data.validation_fraction")] = None,
    preprocess: Annotated[str | None, setting_option("data.preprocess")] = None,
    join: Annotated[Path | None, setting_option("federation.join")] = None,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Also log to tensorboard, mlflow or wandb.")
    ] = None,
    override: OverrideOption = None,
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
        "data.preprocess": preprocess,
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
