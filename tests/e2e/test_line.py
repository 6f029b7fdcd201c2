"""The whole line through the command lines, as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedapt.cli.app import main
from fedapt.core.records import read_records
from fedapt_runtime.cli import main as runtime_main

SETTINGS = ["--lr", "0.1", "--batch-size", "8", "--context-length", "4", "--seed", "3"]


def train_arguments(out: Path, images: Path, clip: Path | str, rounds: int) -> list[str]:
    named = ["--data", str(images), "--out", str(out), "--model", str(clip)]
    return ["train", *named, "--rounds", str(rounds), *SETTINGS]


def test_train_evaluate_export_classify(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model, rows = tmp_path / "run", tmp_path / "model.onnx", tmp_path / "rows.jsonl"
    checkpoint = run / "checkpoint.safetensors"

    assert main([*train_arguments(run, tiny_images, tiny_clip, 12), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoint.safetensors",
        "config.toml",
        "records.jsonl",
    ]
    records = read_records(run / "records.jsonl")
    assert [r["round"] for r in records] == list(range(1, 13))
    assert records[-1]["loss"] < records[0]["loss"]
    assert set(records[0]) == {
        "round",
        "loss",
        "accuracy",
        "mean_accuracy",
        "seconds",
        "evaluation_seconds",
        "bytes_sent",
    }
    # V [3, 4, 32] and Q [2, 32], float32, to and from two clients
    assert records[0]["bytes_sent"] == 2 * 2 * 4 * (3 * 4 * 32 + 2 * 32)

    assert main(["evaluate", str(checkpoint), "--data", str(tiny_images), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated == trained
    assert set(evaluated) == {"mean", "zero_shot_mean", "domains", "routing", "prompts"}
    assert evaluated["domains"]["photo"]["n"] == 6
    assert evaluated["mean"] > evaluated["zero_shot_mean"]

    assert main(["export", str(checkpoint), "--out", str(model), "--json"]) == 0
    parity = json.loads(capsys.readouterr().out)
    assert parity["images"] == 12
    assert parity["feature_difference"] < 1e-4

    folders = [str(tiny_images / domain) for domain in ("photo", "sketch")]
    assert runtime_main(["classify", str(model), *folders, "--out", str(rows)]) == 0
    predictions = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(predictions) == 60
    right = [Path(p["path"]).parent.name.replace("_", " ") == p["label"] for p in predictions]
    assert sum(right) / len(right) > 0.8


def test_exact_prompts_agree_with_banks_in_the_evaluation(
    tiny_run: Path, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(tiny_run / "checkpoint.safetensors"), "--data", str(tiny_images)]
    results = []
    for extra in ([], ["--exact"]):
        assert main([*command, *extra, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert [r.pop("prompts") for r in results] == ["banks", "exact"]
    assert results[0]["mean"] == pytest.approx(results[1]["mean"], abs=0.1)


def test_the_tables_name_every_domain(
    tiny_run: Path, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(tiny_run / "checkpoint.safetensors")
    assert main(["evaluate", checkpoint, "--data", str(tiny_images)]) == 0
    shown = capsys.readouterr().out
    for word in ("photo", "sketch", "mean", "zero-shot", "Routing"):
        assert word in shown


def test_one_domain_only_works_with_weight_one(
    tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.support.tiny import write_tiny_images

    images = write_tiny_images(tmp_path / "data", per_class=5, domains=("photo",))
    run = tmp_path / "run"
    assert main([*train_arguments(run, images, tiny_clip, 2), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["routing"] == {"photo": {"photo": 1.0}}
    model = tmp_path / "model.onnx"
    assert main(["export", str(run / "checkpoint.safetensors"), "--out", str(model)]) == 0


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, tiny_images: Path, tiny_clip: Path
) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(train_arguments(run, tiny_images, tiny_clip, 40)) == 0
    return run


def start_and_stop(arguments: list[str], run: Path, sign: signal.Signals) -> tuple[int, str]:
    """Start a training in a process of its own and send it a signal after its third round."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fedapt.cli", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            records = run / "records.jsonl"
            if records.is_file() and len(records.read_text().splitlines()) >= 3:
                break
            time.sleep(0.005)
        process.send_signal(sign)
        _, messages = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, messages


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bytes(
    tmp_path: Path,
    tiny_images: Path,
    tiny_clip: Path,
    uninterrupted: Path,
    sign: signal.Signals,
) -> None:
    run = tmp_path / "run"
    arguments = train_arguments(run, tiny_images, tiny_clip, 40)
    code, messages = start_and_stop(arguments, run, sign)
    assert code == (-9 if sign == signal.SIGKILL else 130), messages
    if sign == signal.SIGINT:
        assert "interrupted: finished files are whole" in messages
        assert "Traceback" not in messages
    done = len(read_records(run / "records.jsonl"))
    assert 3 <= done < 40
    assert main([*arguments, "--resume"]) == 0
    name = "checkpoint.safetensors"
    assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert [r["loss"] for r in read_records(run / "records.jsonl")] == [
        r["loss"] for r in read_records(uninterrupted / "records.jsonl")
    ]


def test_a_model_in_a_folder_is_found_from_anywhere(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_clip.parent)
    here = Path(".") / tiny_clip.name
    run = tmp_path / "run"
    assert main(train_arguments(run, tiny_images, f"./{here}", 1)) == 0
    monkeypatch.chdir(tmp_path)
    checkpoint = str(run / "checkpoint.safetensors")
    assert main(["evaluate", checkpoint, "--data", str(tiny_images)]) == 0


def test_resuming_takes_the_settings_from_the_run_itself(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert main(train_arguments(run, tiny_images, tiny_clip, 2)) == 0
    assert main(["train", "--out", str(run), "--resume", "--rounds", "4"]) == 0
    assert main(train_arguments(whole, tiny_images, tiny_clip, 4)) == 0
    name = "checkpoint.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path, uninterrupted: Path
) -> None:
    name = "checkpoint.safetensors"
    again = train_arguments(tmp_path / "again", tiny_images, tiny_clip, 40)
    other = [*train_arguments(tmp_path / "other", tiny_images, tiny_clip, 40), "--seed", "4"]
    assert main(again) == 0
    assert main(other) == 0
    assert (tmp_path / "again" / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert (tmp_path / "other" / name).read_bytes() != (uninterrupted / name).read_bytes()
