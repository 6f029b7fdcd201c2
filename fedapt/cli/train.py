"""`fedapt train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fedapt
from fedapt.cli.evaluate import show_evaluation
from fedapt.cli.options import (
    DeviceOption,
    JsonOption,
    OverrideOption,
    PresetOption,
    setting_option,
)
from fedapt.cli.show import console_reporter, print_json
from fedapt.core.presets import RECOMMENDED

_RESUME = "`fedapt train --resume` continues"


def train(
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    data: Annotated[
        Path | None, typer.Option(help="ROOT of ROOT/<domain>/<class>/<images>, or a table.")
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
    preset: PresetOption = RECOMMENDED,
    engine: Annotated[
        str, typer.Option(help="Engine that runs the clients: local, or flower (simulation).")
    ] = "local",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the checkpoint in OUT, with its settings."),
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train one prompt across domains, with one client per domain folder."""
    named = {
        "model": model,
        "pretrained": pretrained,
        "method": method,
        "rounds": rounds,
        "lr": lr,
        "batch_size": batch_size,
        "context_length": context_length,
        "temperature": temperature,
        "seed": seed,
        "validation": validation,
        "preprocess": preprocess,
        "join": join,
    }
    with console_reporter(_RESUME) as reporter:
        run = fedapt.train(
            data,
            out,
            settings=config,
            overrides=override or (),
            preset=preset,
            resume=resume,
            device=device,
            engine=engine,
            trackers=tracker or (),
            reporter=reporter,
            **named,
        )
        reporter.message(f"written: {run.checkpoint}")
    assert run.evaluation is not None  # every training ends with one
    if as_json:
        print_json(run.evaluation.to_dict())
    else:
        show_evaluation(run.evaluation, str(out))
