"""Experiment trackers, each through its own library and with that library's own settings.

No tracker is active by default. A tracker gets the records of `records.jsonl`, after they are
written, and the settings without paths. A failed tracker does not affect the results.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedapt.core.config import Config, flatten, remove_paths
from fedapt.core.errors import DependencyError, UsageError
from fedapt.core.records import Record
from fedapt.core.report import Reporter

# logs scalar values of one round
Log = Callable[[int, dict[str, float]], None]


def scalars(record: Record) -> dict[str, float]:
    """A record's numbers under flat names, such as `accuracy/dslr`."""
    flat: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{inner}": float(number) for inner, number in value.items()}
        elif name != "round":
            flat[name] = float(value)
    return flat


@contextmanager
def _tensorboard(folder: Path, config: Config) -> Iterator[Log]:
    """Events in `RUN/tensorboard`, for `tensorboard --logdir RUN`."""
    summary = _import("torch.utils.tensorboard", "tensorboard")
    with summary.SummaryWriter(str(folder / "tensorboard")) as writer:

        def log(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield log


@contextmanager
def _mlflow(folder: Path, config: Config) -> Iterator[Log]:
    """A run at MLFLOW_TRACKING_URI, named after the run folder."""
    mlflow = _import("mlflow", "mlflow")
    with mlflow.start_run(run_name=folder.name):
        mlflow.log_params(flatten(remove_paths(config)))

        def log(step: int, values: dict[str, float]) -> None:
            # MLflow allows letters, digits and a few signs; names of folders may have others
            allowed = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
            mlflow.log_metrics(allowed, step=step)

        yield log


@contextmanager
def _wandb(folder: Path, config: Config) -> Iterator[Log]:
    """A run of the project `fedapt` (or WANDB_PROJECT), named after the run folder."""
    import os

    wandb = _import("wandb", "wandb")
    project = os.environ.get("WANDB_PROJECT", "fedapt")
    run = wandb.init(
        project=project, name=folder.name, dir=str(folder), config=flatten(remove_paths(config))
    )
    try:
        yield lambda step, values: run.log(values, step=step)
    finally:
        run.finish()


TRACKERS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse unknown names.

    Raises:
        UsageError: an unknown tracker.
    """
    for name in names:
        if name not in TRACKERS:
            raise UsageError(
                where="trackers",
                found=repr(name),
                expected=f"one of {', '.join(TRACKERS)}",
                next_step="check the spelling",
            )


@contextmanager
def track(
    names: Sequence[str], folder: Path, config: Config, reporter: Reporter
) -> Iterator[Callable[[Record], None]]:
    """Open these trackers while the block runs, and yield a function that logs a record.

    A tracker that fails later is reported once and disabled. Training continues.

    Raises:
        DependencyError: a library is not installed.
        UsageError: a tracker cannot start, such as without its server.
    """
    with ExitStack() as stack:
        logs = {name: _open(stack, name, folder, config) for name in names}

        def log(record: Record) -> None:
            for name, one in list(logs.items()):
                try:
                    one(record["round"], scalars(record))
                except Exception as error:  # each library has its own tree
                    del logs[name]
                    reporter.message(f"{name} has failed and is disabled: {_say(error)}")

        yield log


def _open(stack: ExitStack, name: str, folder: Path, config: Config) -> Log:
    try:
        return stack.enter_context(TRACKERS[name](folder, config))
    except DependencyError:
        raise
    except Exception as error:  # each library has its own tree
        raise UsageError(
            where=f"tracker {name}",
            found=_say(error),
            expected="a tracker that starts",
            next_step=f"configure {name} as its documentation describes, or leave it out",
        ) from error


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            where=f"tracker {package}",
            found=f"no {package} ({error})",
            expected=f"the package {package}",
            next_step=f"pip install 'fedapt[{package}]'",
        ) from error
