"""The Python API: what the commands do, as functions. `import fedapt` offers it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedapt.core.names import METHODS
from fedapt.core.presets import RECOMMENDED
from fedapt.core.report import Reporter
from fedapt.run.folder import RunFolder
from fedapt.run.settings import AnyPath, Images, Settings, read_run_settings
from fedapt.trained import Run

if TYPE_CHECKING:
    from fedapt.comparison.run import Comparison


# share of training images that choose round and learning rate in a comparison
VALIDATION = 0.2


def train(
    data: Images | None = None,
    out: AnyPath = "run",
    *,
    settings: Settings = None,
    overrides: Sequence[str] = (),
    preset: str = RECOMMENDED,
    resume: bool = False,
    device: str = "auto",
    engine: str = "local",
    trackers: Sequence[str] = (),
    reporter: Reporter | None = None,
    **named: Any,
) -> Run:
    """Train one prompt together: one client per domain folder.

    Args:
        data: ROOT of ROOT/<domain>/<class>/<images>; or a CSV or Parquet table of path, class and
            domain; or a split of Hugging Face `datasets` with images, class or label, and domain;
            None takes `data.root` of the settings.
        out: the run folder to write.
        settings: a TOML file, a `fedapt.Config`, or `section.key` -> value.
        overrides: `section.key=value`, after the settings.
        preset: initial settings, `recommended` (the defaults) or `paper`.
        resume: continue from the checkpoint in `out`, with its settings.
        device: `auto`, `cpu` or `cuda`.
        engine: engine that runs the clients, `local`, or `flower` for its simulation.
        trackers: `tensorboard`, `mlflow`, `wandb`.
        reporter: receives messages and progress.
        named: settings by their short names, such as `rounds=10`, `lr=0.1`, `method="promptfl"`.

    Raises:
        ConfigError: an unknown setting, or a wrong value.
        ReportedError: see `fedapt.errors`; every file in `out` is whole at any moment.

    Examples:
        >>> run = fedapt.train("images", out="new", model="./clip", rounds=1, context_length=4)
        >>> run.checkpoint.name
        'checkpoint.safetensors'
        >>> sorted(run.evaluation.domains)
        ['photo', 'sketch']
    """
    from fedapt.run.train import train as run_training

    folder = RunFolder(Path(out))
    if resume and settings is None and folder.config.is_file():
        settings = folder.config  # a run goes on with the settings that it began with
    evaluation = run_training(
        read_run_settings(settings, data, named, overrides, preset),
        folder.path,
        resume=resume,
        device=device,
        reporter=reporter or Reporter(),
        trackers=tuple(trackers),
        engine=engine,
    )
    return Run(folder.checkpoint, evaluation)


def compare(
    data: Images | None = None,
    out: AnyPath = "comparison",
    *,
    methods: Sequence[str] = ("zero-shot", "local", "promptfl", "fedapt"),
    protocols: Sequence[str] = ("in-domain",),
    seeds: int = 3,
    lrs: Sequence[float] = (),
    settings: Settings = None,
    overrides: Sequence[str] = (),
    preset: str = RECOMMENDED,
    processes: int = 1,
    device: str = "auto",
    reporter: Reporter | None = None,
    **named: Any,
) -> Comparison:
    """Train methods under one budget; writes results.json, results.csv and report.html.

    Args:
        data, settings, overrides, preset, device, named: see `train`; `data` may also be a bundle
            of features. A fifth of the training images
            chooses rounds and learning rates, unless `data.validation_fraction` says otherwise.
        out: the folder to write; finished cells in it are kept.
        methods: names, see `fedapt methods`, or `["all"]`.
        protocols: any of `in-domain`, `leave-one-out`, `dirichlet`, `few-shot`, or `["all"]`.
        seeds: how many, from 0.
        processes: number of parallel processes, each on one core.
        lrs: learning rates to choose from; none for `train.lr` alone.

    Raises:
        ReportedError: see `fedapt.errors`.

    Examples:
        >>> comparison = fedapt.compare(
        ...     "images", "cmp", model="./clip", methods=["zero-shot"], seeds=1, rounds=1
        ... )
        >>> comparison.domains
        ('photo', 'sketch')
    """
    from fedapt.comparison.plan import PROTOCOLS, Plan
    from fedapt.comparison.write import write_comparison

    config = read_run_settings(settings, data, named, overrides, preset)
    if named.get("validation") is None and not config.data.validation_fraction:
        images = dataclasses.replace(config.data, validation_fraction=VALIDATION)
        config = dataclasses.replace(config, data=images)
    plan = Plan(
        methods=tuple(METHODS) if list(methods) == ["all"] else tuple(methods),
        protocols=PROTOCOLS if list(protocols) == ["all"] else tuple(protocols),
        seeds=tuple(range(seeds)),
        rates=tuple(lrs) or (config.train.lr,),
    )
    comparison, _, _ = write_comparison(
        config, plan, Path(out), device, reporter or Reporter(), processes
    )
    return comparison


def load(path: AnyPath) -> Run:
    """A run from its folder or checkpoint.

    Raises:
        CheckpointError: there is none, or it is damaged.

    Examples:
        >>> fedapt.load("run") == fedapt.load("run/checkpoint.safetensors")
        True
    """
    path = Path(path)
    run = Run(RunFolder(path).checkpoint if path.is_dir() else path)
    _ = run.config  # read once: a damaged file is refused here
    return run
