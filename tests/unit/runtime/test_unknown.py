"""The signal for unknown domains, computed by hand."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedapt_runtime import Classifier
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.batch import classify_files
from fedapt_runtime.cli import main
from fedapt_runtime.errors import InputError, ModelFileError, RuntimeFailure
from fedapt_runtime.journal import part_path
from fedapt_runtime.manifest import parse_manifest
from fedapt_runtime.unknown import UnknownSignal, calibrate_signal, read_signal
from tests.support.manifests import make_manifest

PLAIN = np.eye(2, dtype=np.float32)
THREE_QUARTERS = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)


def rows(*values: tuple[float, float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def test_scores_by_hand() -> None:
    signal = UnknownSignal(PLAIN, 0.5, 0.95, 100)
    features = rows((0, 0), (math.log(3), 0), (1, 1 + math.log(3)), (1000, 0), (0, -1000))
    found = signal.score(features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [1, THREE_QUARTERS, THREE_QUARTERS, 0, 0], atol=1e-6)
    # three domains, two of them equally likely: log 2 in units of log 3
    wider = UnknownSignal(np.array([[50, 0], [50, 0], [0, 50]], np.float32), 0.5, 1.0, 1)
    np.testing.assert_allclose(wider.score(rows((1, 0))), [math.log(2) / math.log(3)], atol=1e-6)
    turned = UnknownSignal(np.array([[0, 2], [1, 0]], np.float32), 0.5, 1.0, 1)
    half = rows((0, math.log(3) / 2))  # z = (log 3, 0)
    np.testing.assert_allclose(turned.score(half), [THREE_QUARTERS], atol=1e-6)


def test_no_number_stays_none() -> None:
    assert math.isnan(UnknownSignal(PLAIN, 0.5, 1.0, 1).score(rows((math.nan, 0)))[0])


@pytest.mark.parametrize(("keep", "kept"), [(0.95, 0.95), (0.9, 0.9), (0.5, 0.5), (1.0, 1.0)])
def test_the_threshold_keeps_the_share_that_was_asked_for(keep: float, kept: float) -> None:
    gaps = np.linspace(0, 5, 101)  # a smaller gap of scores is less sure
    features = np.stack([gaps, np.zeros(101)], 1).astype(np.float32)
    signal = calibrate_signal(PLAIN, features, keep)
    scores = signal.score(features)
    assert (scores <= signal.threshold).mean() == signal.kept
    assert kept <= signal.kept <= kept + 1 / 101 + 1e-9
    assert signal.threshold in scores
    assert signal.images == 101


def manifest_with(signal: UnknownSignal, **changes: object) -> str:
    manifest = make_manifest(("cat", "dog"), ("day", "night"))
    block = signal.to_block() | changes
    return dataclasses.replace(manifest, unknown=block).to_json()


def test_a_signal_survives_its_manifest() -> None:
    signal = UnknownSignal(np.array([[0.1, 2], [3, 4]], np.float32), 0.25, 0.96, 50)
    found = read_signal(parse_manifest(manifest_with(signal), "here"), "here")
    assert np.array_equal(found.network, signal.network)
    assert (found.threshold, found.kept, found.images) == (0.25, 0.96, 50)


def test_a_manifest_without_a_signal_is_what_it_was() -> None:
    text = make_manifest(("cat", "dog"), ("day",)).to_json()
    assert "unknown" not in json.loads(text)
    with pytest.raises(RuntimeFailure, match="found a model without a signal for unknown domains"):
        read_signal(parse_manifest(text, "here"), "here")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"adaptive_network": "no base64!"}, "Error"),
        ({"adaptive_network": "AAAA"}, "ValueError"),
        ({"adaptive_network": 5}, "TypeError"),
        ({"shape": [1, 4]}, r"an adaptive network \[1, 4\]"),
        ({"shape": [4]}, r"an adaptive network \[4\]"),
        ({"shape": [3, 2]}, "ValueError"),
        ({"threshold": None}, "TypeError"),
        ({"threshold": "high"}, "ValueError"),
        ({"score": "a later one"}, "the score 'a later one'"),
        (
            {"adaptive_network": base64.b64encode(np.full(4, np.nan, "<f4").tobytes()).decode()},
            "an adaptive network",
        ),
    ],
)
def test_damaged_signals_are_refused(changes: dict[str, object], text: str) -> None:
    damaged = manifest_with(UnknownSignal(PLAIN, 0.5, 1.0, 1), **changes)
    with pytest.raises(ModelFileError, match=f"found a damaged signal.*{text}"):
        read_signal(parse_manifest(damaged, "here"), "here")


class FakeBackend:
    """The first pixel decides: z = (log 3, 0) below 100, (0, 0) from there on."""

    description = "a fake"

    def __init__(self, signal: UnknownSignal | None) -> None:
        block = None if signal is None else signal.to_block()
        plain = make_manifest(("cat", "dog"), ("day", "night"))
        self.manifest = dataclasses.replace(plain, unknown=block)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        known = images[:, 0, 0, 0] < 100
        features = np.where(known[:, None], [math.log(3), 0], [0, 0]).astype(np.float32)
        logits = np.zeros((len(images), 2), np.float32)
        return Outputs(logits, np.full_like(logits, 0.5), features)


SIGNAL = UnknownSignal(PLAIN, 0.9, 0.95, 100)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Known, broken, unknown."""
    (tmp_path / "in").mkdir()
    for name, colour in (("a.png", 10), ("c.png", 200)):
        Image.new("RGB", (3, 3), (colour, 0, 0)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_text("text")
    return [str(tmp_path / "in" / name) for name in ("a.png", "b.png", "c.png")]


def test_images_are_flagged_where_asked_for(paths: list[str]) -> None:
    classifier = Classifier(FakeBackend(SIGNAL))
    found = list(classifier.stream(paths, flag_unknown=True))
    assert [p.unknown for p in found] == [False, None, True]
    scores = [p.unknown_score for p in found]
    assert scores[0] == pytest.approx(THREE_QUARTERS, abs=1e-6)
    assert scores[1:] == [None, pytest.approx(1.0)]
    silent = list(classifier.stream(paths))
    assert [(p.unknown, p.unknown_score) for p in silent] == [(None, None)] * 3


def test_a_model_without_a_signal_is_refused_before_any_work() -> None:
    def images() -> object:
        raise AssertionError("the work has begun")
        yield ""

    with pytest.raises(RuntimeFailure, match="leave --flag-unknown out"):
        list(Classifier(FakeBackend(None)).stream(images(), flag_unknown=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("flagged", [False, True])
def test_the_columns_are_there_only_where_asked_for(
    paths: list[str], tmp_path: Path, flagged: bool
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    classifier = Classifier(FakeBackend(SIGNAL))
    outs = {suffix: tmp_path / f"rows.{suffix}" for suffix in ("jsonl", "csv", "parquet")}
    for out in outs.values():
        classify_files(classifier, paths, out, flag_unknown=flagged)
    lines = [json.loads(line) for line in outs["jsonl"].read_text().splitlines()]
    with outs["csv"].open(newline="") as stream:
        table = list(csv.DictReader(stream))
    arrow = parquet.read_table(outs["parquet"]).to_pylist()
    for found in (lines, table, arrow):
        assert all(("unknown" in row, "unknown_score" in row) == (flagged,) * 2 for row in found)
    if flagged:
        assert [row["unknown"] for row in lines] == [False, None, True]
        assert [row["unknown"] for row in table] == ["False", "", "True"]
        assert [row["unknown"] for row in arrow] == [False, None, True]
        assert arrow[2]["unknown_score"] == pytest.approx(1.0)


def test_rows_with_and_without_are_two_jobs(paths: list[str], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"

    def stop(summary: object) -> None:
        raise KeyboardInterrupt

    classifier = Classifier(FakeBackend(SIGNAL))
    with pytest.raises(KeyboardInterrupt):
        classify_files(classifier, paths, out, flag_unknown=True, progress=stop)
    assert part_path(out).is_file()
    with pytest.raises(InputError, match="found rows of another job"):
        classify_files(classifier, paths, out, resume=True)


def test_the_command_says_what_the_model_lacks(
    tiny_model: Path, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", str(tiny_model), paths[0], "--flag-unknown"]) == 8
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "export it again with --data" in captured.err
