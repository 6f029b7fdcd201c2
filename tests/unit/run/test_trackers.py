"""Experiment trackers: what they write, read back with their own libraries."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedapt.cli.app import main
from fedapt.core.config import Config, flatten, read_config
from fedapt.core.errors import DependencyError, UsageError
from fedapt.core.records import Record, read_records
from fedapt.core.report import Reporter
from fedapt.run.trackers import TRACKERS, Log, check_trackers, scalars, track

CONFIG = read_config(
    None,
    ["train.lr=0.25", "data.class_names.blue_disc=disc"],
    {"data.root": "/home/ada/images", "model.name": "/home/ada/clip"},
)
RECORDS: list[Record] = [
    {"round": 1, "loss": 1.5, "clients": 2, "seconds": 0.25, "bytes_sent": 4096},
    {
        "round": 2,
        "loss": 0.75,
        "clients": 2,
        "seconds": 0.25,
        "bytes_sent": 4096,
        "accuracy": {"photo": 0.5, "my sketch (1)": 1.0},
        "mean_accuracy": 0.75,
    },
]


def has(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def log_all(name: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with track([name], folder, CONFIG, Reporter()) as log:
        for record in RECORDS:
            log(record)


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


# what is logged


def test_a_record_has_flat_names() -> None:
    assert scalars(RECORDS[1]) == {
        "loss": 0.75,
        "clients": 2.0,
        "seconds": 0.25,
        "bytes_sent": 4096.0,
        "accuracy/photo": 0.5,
        "accuracy/my sketch (1)": 1.0,
        "mean_accuracy": 0.75,
    }
    assert all(type(value) is float for value in scalars(RECORDS[1]).values())


def test_nothing_is_logged_unless_named(tmp_path: Path) -> None:
    with track([], tmp_path, CONFIG, Reporter()) as log:
        log(RECORDS[0])
    assert list(tmp_path.iterdir()) == []


# each library


def test_tensorboard(tmp_path: Path) -> None:
    log_all("tensorboard", tmp_path)
    found = read_tensorboard(tmp_path)
    assert found == {
        "loss": [(1, 1.5), (2, 0.75)],
        "clients": [(1, 2.0), (2, 2.0)],
        "seconds": [(1, 0.25), (2, 0.25)],
        "bytes_sent": [(1, 4096.0), (2, 4096.0)],
        "accuracy/photo": [(2, 0.5)],
        "accuracy/my sketch (1)": [(2, 1.0)],
        "mean_accuracy": [(2, 0.75)],
    }


def test_tensorboard_has_every_round_at_once(tmp_path: Path) -> None:
    with track(["tensorboard"], tmp_path, CONFIG, Reporter()) as log:
        log(RECORDS[0])
        assert read_tensorboard(tmp_path)["loss"] == [(1, 1.5)]


@pytest.mark.skipif(not has("mlflow"), reason="no mlflow: pip install 'fedapt[mlflow]'")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no database
    log_all("mlflow", tmp_path / "run")
    import mlflow

    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(["0"])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    without_paths = flatten(CONFIG) | {"data.root": "", "model.name": ""}
    assert run.data.params == {name: str(value) for name, value in without_paths.items()}
    assert run.data.params["train.lr"] == "0.25"
    history = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert history["loss"] == [(1, 1.5), (2, 0.75)]
    assert history["accuracy/photo"] == [(2, 0.5)]
    assert history["accuracy/my sketch _1_"] == [(2, 1.0)]  # mlflow takes no brackets
    assert len(history) == 7


@pytest.mark.skipif(not has("wandb"), reason="no wandb: pip install 'fedapt[wandb]'")
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "a project of mine")
    log_all("wandb", tmp_path / "run")
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    names = [*scalars(RECORDS[1]), *flatten(CONFIG), "a project of mine", "my sketch (1)"]
    deadline = time.monotonic() + 30  # wandb's own process may write after `finish` has returned
    while missing := [name for name in names if name.encode() not in path.read_bytes()]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.02)
    data = path.read_bytes()
    assert data.count(b"accuracy/photo") < data.count(b"loss")


# refusals


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_library(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(name, monkeypatch)
    with (
        pytest.raises(DependencyError) as caught,
        track([name], tmp_path, CONFIG, Reporter()),
    ):
        pass
    error = caught.value
    assert error.exit_code == 9
    assert error.where == f"tracker {name}"
    assert error.found.startswith(f"no {name} (")
    assert error.expected == f"the package {name}"
    assert error.next_step == f"pip install 'fedapt[{name}]'"


def hide(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


def test_every_tracker_can_be_installed_as_it_says() -> None:
    import tomllib

    from fedapt.run.trackers import TRACKERS
    from tests.support.paths import ROOT

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(TRACKERS) <= set(project["optional-dependencies"])


def test_an_unknown_tracker() -> None:
    check_trackers(["tensorboard", "mlflow", "wandb"])
    check_trackers([])
    with pytest.raises(UsageError) as caught:
        check_trackers(["tensorboard", "tensorbord"])
    error = caught.value
    assert error.exit_code == 2
    assert (error.where, error.found) == ("trackers", "'tensorbord'")
    assert error.expected == "one of tensorboard, mlflow, wandb"


# a whole run


def arguments(out: Path, images: Path, clip: Path, *more: str) -> list[str]:
    named = ["--data", str(images), "--out", str(out), "--model", str(clip), "--rounds", "3"]
    settings = ["--context-length", "2", "-o", "train.evaluate_every=2"]
    return ["train", *named, *settings, *more]


def test_a_run_logs_its_records(tmp_path: Path, tiny_images: Path, tiny_clip: Path) -> None:
    assert main(arguments(tmp_path, tiny_images, tiny_clip, "--tracker", "tensorboard")) == 0
    records = read_records(tmp_path / "records.jsonl")
    found: dict[str, Any] = read_tensorboard(tmp_path)
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    assert [step for step, _ in found["accuracy/photo"]] == [2, 3]
    for record in records:
        for name, value in scalars(record).items():
            assert dict(found[name])[record["round"]] == pytest.approx(value, rel=1e-6)


def test_a_run_without_the_library_exits_with_9(
    tmp_path: Path,
    tiny_images: Path,
    tiny_clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hide("wandb", monkeypatch)
    assert main(arguments(tmp_path / "run", tiny_images, tiny_clip, "--tracker", "wandb")) == 9
    assert "error: --tracker wandb: found no wandb" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_run_with_a_typo_exits_with_2_and_leaves_nothing(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "run", tiny_images, tiny_clip, "--tracker", "wandbb")) == 2
    assert "found 'wandbb'; expected one of tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# a library that fails


class Messages(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_a_tracker_that_fails_later_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    @contextmanager
    def failing(folder: Path, config: Config) -> Iterator[Log]:
        def log(step: int, values: dict[str, float]) -> None:
            seen.append(step)
            raise RuntimeError("the server\nhas gone")

        yield log

    monkeypatch.setitem(TRACKERS, "mlflow", failing)
    reporter = Messages()
    with track(["mlflow", "tensorboard"], tmp_path, CONFIG, reporter) as log:
        for record in RECORDS:
            log(record)
    assert seen == [1]
    assert reporter.lines == [
        "mlflow has failed and is disabled: RuntimeError: the server has gone"
    ]
    assert read_tensorboard(tmp_path)["loss"] == [(1, 1.5), (2, 0.75)]


def test_a_tracker_that_cannot_begin_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def failing(folder: Path, config: Config) -> Iterator[Log]:
        raise ValueError("no store")
        yield

    monkeypatch.setitem(TRACKERS, "wandb", failing)
    with (
        pytest.raises(UsageError, match=r"^tracker wandb: found ValueError: no store; expected a"),
        track(["wandb"], tmp_path, CONFIG, Reporter()),
    ):
        pass
