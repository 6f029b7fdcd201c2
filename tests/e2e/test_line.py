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
from fedapt.model.checkpoint import load_checkpoint
from fedapt_runtime.cli import main as runtime_main
from tests.support.tiny import write_tiny_images

SETTINGS = ["--lr", "0.1", "--batch-size", "8", "--context-length", "4", "--seed", "3"]


def train_arguments(out: Path, images: Path, clip: Path | str, rounds: int) -> list[str]:
    named = ["--data", str(images), "--out", str(out), "--model", str(clip)]
    return ["train", *named, "--rounds", str(rounds), *SETTINGS]


def test_train_evaluate_export_classify(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model, rows = tmp_path / "run", tmp_path / "model.onnx", tmp_path / "rows.jsonl"
    checkpoint = run / "checkpoint.safetensors"

    assert (
        main([*train_arguments(run, tiny_images, tiny_clip, 12), "--preset", "paper", "--json"])
        == 0
    )
    trained = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoint.safetensors",
        "config.toml",
        "images.sha256",
        "records.jsonl",
    ]
    records = read_records(run / "records.jsonl")
    assert [r["round"] for r in records] == list(range(1, 13))
    assert records[-1]["loss"] < records[0]["loss"]
    always = {"round", "loss", "clients", "seconds", "bytes_sent"}
    evaluated_too = {
        "accuracy",
        "mean_accuracy",
        "evaluation_seconds",
        "routed",
        "calibration_error",
    }
    for record in records:
        is_evaluated = record["round"] in (5, 10, 12)  # every fifth, and the last
        assert set(record) == (always | evaluated_too if is_evaluated else always)
    assert records[-1]["accuracy"] == {d: r["accuracy"] for d, r in trained["domains"].items()}
    assert records[0]["clients"] == 2
    # V [3, 4, 32] and Q [2, 32], float32, to and from two clients
    assert records[0]["bytes_sent"] == 2 * 2 * 4 * (3 * 4 * 32 + 2 * 32)

    assert main(["evaluate", str(checkpoint), "--data", str(tiny_images), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated == trained
    assert set(evaluated) == {
        "method",
        "mean",
        "zero_shot_mean",
        "domains",
        "routing",
        "routed",
        "prompts",
        "calibration_error",
    }
    assert evaluated["method"] == "FedAPT"
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
    images = write_tiny_images(tmp_path / "data", per_class=5, domains=("photo",))
    run = tmp_path / "run"
    assert main([*train_arguments(run, images, tiny_clip, 2), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["routing"] == {"photo": {"photo": 1.0}}
    model = tmp_path / "model.onnx"
    assert main(["export", str(run / "checkpoint.safetensors"), "--out", str(model)]) == 0


# validation images choose the round

VALIDATED = ["--validation", "0.25", "-o", "train.evaluate_every=3"]


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path, tiny_clip: Path) -> Path:
    run = tmp_path_factory.mktemp("validated") / "run"
    assert main([*train_arguments(run, tiny_images, tiny_clip, 40), *VALIDATED]) == 0
    return run


def test_the_round_that_validation_chose_is_kept_and_evaluated(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    # so fast that the last round is not the best one
    arguments = [*train_arguments(run, tiny_images, tiny_clip, 11), *VALIDATED, "--lr", "30"]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    records = read_records(run / "records.jsonl")
    scores = {r["round"]: r["mean_validation"] for r in records if "validation" in r}
    assert list(scores) == [3, 6, 9, 11]
    best = min(number for number, score in scores.items() if score == max(scores.values()))
    assert best < 11
    assert f"best round on validation: {best} ({run / 'best.safetensors'})" in captured.err
    assert load_checkpoint(run / "best.safetensors").info.rounds == best
    assert load_checkpoint(run / "checkpoint.safetensors").info.rounds == 11
    trained = json.loads(captured.out)
    shown = {name: result["accuracy"] for name, result in trained["domains"].items()}
    assert shown == records[best - 1]["accuracy"]
    best_file = str(run / "best.safetensors")
    assert main(["evaluate", best_file, "--data", str(tiny_images), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == trained


def test_validation_images_neither_train_nor_test(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {}
    for validation in ("0", "0.25"):
        run = tmp_path / validation
        arguments = train_arguments(run, tiny_images, tiny_clip, 1)
        extra = ["--validation", validation, "-o", "federation.clients_per_domain=2"]
        needed = ["-o", f"federation.min_images={12 if validation == '0' else 9}"]
        assert main([*arguments, *extra, *needed, "--json"]) == 0
        counts[validation] = json.loads(capsys.readouterr().out)["domains"]["photo"]["n"]
        # one more for each client, and there are not enough training images
        more = ["-o", f"federation.min_images={13 if validation == '0' else 10}"]
        other = train_arguments(tmp_path / "other", tiny_images, tiny_clip, 1)
        assert main([*other, *extra, *more]) == 4
        n_images = 24 if validation == "0" else 18
        assert f"found {n_images} training images for 2 clients" in capsys.readouterr().err
    assert counts == {"0": 6, "0.25": 6}
    assert not (tmp_path / "0" / "best.safetensors").exists()
    assert (tmp_path / "0.25" / "best.safetensors").exists()


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
        assert "interrupted: finished files are complete; `fedapt train --resume`" in messages
        assert "Traceback" not in messages
    done = len(read_records(run / "records.jsonl"))
    assert 3 <= done < 40
    assert main([*arguments, "--resume"]) == 0
    name = "checkpoint.safetensors"
    assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert [r["loss"] for r in read_records(run / "records.jsonl")] == [
        r["loss"] for r in read_records(uninterrupted / "records.jsonl")
    ]


def test_a_killed_run_with_validation_ends_with_the_same_bytes(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path, validated: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*train_arguments(run, tiny_images, tiny_clip, 40), *VALIDATED]
    code, messages = start_and_stop(arguments, run, signal.SIGKILL)
    assert code == -9, messages
    assert 3 <= len(read_records(run / "records.jsonl")) < 40
    assert main(["train", "--out", str(run), "--resume"]) == 0
    for name in ("checkpoint.safetensors", "best.safetensors"):
        assert (run / name).read_bytes() == (validated / name).read_bytes()
    for found, expected in zip(
        *(read_records(r / "records.jsonl") for r in (run, validated)), strict=True
    ):
        for record in (found, expected):
            record.pop("seconds")
            record.pop("evaluation_seconds", None)
        assert found == expected


def test_patience_ends_a_run_and_resuming_it_trains_no_more(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = ["--validation", "0.25", "-o", "train.evaluate_every=1", "-o", "train.patience=2"]
    arguments = [*train_arguments(run, tiny_images, tiny_clip, 60), *settings]
    assert main([*arguments, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    records = read_records(run / "records.jsonl")
    scores = [r["mean_validation"] for r in records]
    assert len(records) < 60
    assert max(scores[:-2]) == max(scores)
    assert scores[-3] == max(scores)
    before = (run / "checkpoint.safetensors").read_bytes()
    assert main(["train", "--out", str(run), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == trained
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert len(read_records(run / "records.jsonl")) == len(records)


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
