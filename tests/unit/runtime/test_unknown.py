"""The signal for unknown domains, computed by hand."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

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
from fedapt_runtime.options import ClassifyOptions
from fedapt_runtime.unknown import (
    UnknownSignal,
    calibrate_signal,
    measure_features,
    read_signal,
)
from tests.support.manifests import make_manifest

PLAIN = np.eye(2, dtype=np.float32)
ONE_ROW = base64.b64encode(np.ones(2, "<f4").tobytes()).decode()
NAN = base64.b64encode(np.full(4, np.nan, "<f4").tobytes()).decode()
THREE_QUARTERS = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)


def rows(*values: tuple[float, float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def signal_of(
    usual: tuple[float, float, float, float] = (0, 1, 0, 1), **more: Any
) -> UnknownSignal:
    """Two domains; the first has a centre along each axis, the second one along the second."""
    fields: dict[str, Any] = {"threshold": 0.9, "kept": 0.95, "images": 100}
    return UnknownSignal(
        PLAIN, rows((1, 0), (0, 1), (0, 1)), np.array([0, 0, 1]), usual, **fields | more
    )


def test_the_two_parts_by_hand() -> None:
    centres, domains = rows((1, 0), (0, 1), (0.6, 0.8)), np.array([0, 0, 1])
    features = rows((math.log(3), 0), (0, math.log(3)), (1000, 0), (0, -1000), (3, 4))
    entropy, distance = measure_features(features, PLAIN, centres, domains)
    p = 1 / (1 + math.e)  # z = (3, 4)
    last = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    np.testing.assert_allclose(entropy, [THREE_QUARTERS, THREE_QUARTERS, 0, 0, last], atol=1e-6)
    # routed to 0: its nearest centre; to 1: its own, though another domain's is nearer
    np.testing.assert_allclose(distance, [0, 1 - 0.8, 0, 2 - 1, 0], atol=1e-6)
    # three domains, two of them equally likely: log 2 in units of log 3
    network = np.array([[50, 0], [50, 0], [0, 50]], np.float32)
    entropy, _ = measure_features(rows((1, 0)), network, centres, np.array([0, 1, 2]))
    np.testing.assert_allclose(entropy, [math.log(2) / math.log(3)], atol=1e-6)


def test_the_larger_part_counts_in_standard_deviations() -> None:
    signal = signal_of((0.5, 0.25, 0.1, 0.2))
    # entropy 1 and distance 1 - cos 45 degrees; then entropy 0 and distance 1
    found = signal.score(rows((1, 1), (0, -1000)))
    assert found.dtype == np.float32
    expected = [
        max(0.5 / 0.25, (1 - math.sqrt(0.5) - 0.1) / 0.2),
        max(-0.5 / 0.25, (1 - 0.1) / 0.2),
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[0] == pytest.approx(2)
    assert found[1] == pytest.approx(4.5)


def test_no_direction_and_no_number() -> None:
    assert signal_of().score(rows((0, 0)))[0] == pytest.approx(1)  # cosine 0, entropy 1
    assert math.isnan(signal_of().score(rows((math.nan, 0)))[0])


@pytest.mark.parametrize("keep", [0.95, 0.9, 0.5, 1.0])
@pytest.mark.parametrize("n", [101, 10])
def test_the_threshold_keeps_the_share_that_was_asked_for(keep: float, n: int) -> None:
    angles = np.linspace(0, 1, n)
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    centres, domains = rows((1, 0), (0, 1)), np.array([0, 1])
    signal = calibrate_signal(PLAIN, centres, domains, features, keep)
    entropy, distance = measure_features(features, PLAIN, centres, domains)
    usual = (entropy.mean(), entropy.std(), distance.mean(), distance.std())
    np.testing.assert_allclose(signal.usual, usual, atol=1e-9)
    scores = signal.score(features)
    assert (scores <= signal.threshold).mean() == signal.kept
    assert keep <= signal.kept <= keep + 1.01 / n
    assert signal.threshold in scores
    assert signal.images == n


def test_features_that_are_all_alike_have_a_scale_all_the_same() -> None:
    signal = calibrate_signal(
        PLAIN, rows((1, 0), (0, 1)), np.array([0, 1]), rows((1, 0), (1, 0)), 1.0
    )
    assert np.isfinite(signal.score(rows((1, 0), (0.5, 0.5)))).all()


def manifest_with(signal: UnknownSignal, **changes: object) -> str:
    manifest = make_manifest(("cat", "dog"), ("day", "night"))
    block = signal.to_block() | changes
    return dataclasses.replace(manifest, unknown=block).to_json()


def test_a_signal_survives_its_manifest() -> None:
    network = np.array([[0.1, 2], [3, 4]], np.float32)
    signal = calibrate_signal(
        network, rows((0.6, 0.8), (0.28, 0.96)), np.array([1, 0]), rows((1, 0), (3, 1), (0, 1)), 0.5
    )
    found = read_signal(parse_manifest(manifest_with(signal), "here"), "here")
    for name in ("network", "centres", "domains"):
        assert np.array_equal(getattr(found, name), getattr(signal, name))
    for name in ("usual", "threshold", "kept", "images"):
        assert getattr(found, name) == getattr(signal, name)


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
        ({"adaptive_network": ONE_ROW, "domains": [0, 0, 0]}, "1 domains"),
        ({"adaptive_network": NAN}, "NaN or infinity"),
        ({"centres": ""}, "0 centres of 2 domains"),
        ({"width": 3}, "ValueError"),
        ({"width": 0}, "ValueError"),
        ({"domains": [0, 0]}, "3 centres of 2 domains"),
        ({"domains": [0, 0, 0]}, "3 centres of 2 domains"),
        ({"domains": [0, 1, 2]}, "3 centres of 2 domains"),
        ({"domains": [0, 1, 10**30]}, "OverflowError"),
        ({"usual": [0, 1, 0]}, "ValueError"),
        ({"usual": [0, 0, 0, 1]}, "deviations of 0"),
        ({"threshold": None}, "TypeError"),
        ({"threshold": "high"}, "ValueError"),
        ({"score": "a later one"}, "the score 'a later one'"),
    ],
)
def test_damaged_signals_are_refused(changes: dict[str, object], text: str) -> None:
    damaged = manifest_with(signal_of(), **changes)
    with pytest.raises(ModelFileError, match=f"found a damaged signal.*{text}"):
        read_signal(parse_manifest(damaged, "here"), "here")


class FakeBackend:
    """The first pixel decides: z = (log 3, 0) below 100, (0, 0) from there on."""

    description = "a fake"
    name, compute = "onnxruntime", "fp32"
    in_flight, default_batch, task_size = 2, 32, 0

    def __init__(self, signal: UnknownSignal | None) -> None:
        block = None if signal is None else signal.to_block()
        plain = make_manifest(("cat", "dog"), ("day", "night"))
        self.manifest = dataclasses.replace(plain, unknown=block)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        known = images[:, 0, 0, 0] < 100
        features = np.where(known[:, None], [math.log(3), 0], [0, 0]).astype(np.float32)
        logits = np.zeros((len(images), 2), np.float32)
        return Outputs(logits, np.full_like(logits, 0.5), features)


SIGNAL = signal_of()


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
    assert scores[0] == pytest.approx(THREE_QUARTERS, abs=1e-6)  # at its centre: no distance
    assert scores[1:] == [None, pytest.approx(1.0)]
    silent = list(classifier.stream(paths))
    assert [(p.unknown, p.unknown_score) for p in silent] == [(None, None)] * 3


def test_a_model_without_a_signal_is_refused_before_any_work() -> None:
    def images() -> object:
        raise AssertionError("the work has begun")
        yield ""

    with pytest.raises(RuntimeFailure, match="omit `flag_unknown`"):
        list(Classifier(FakeBackend(None)).stream(images(), flag_unknown=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("flagged", [False, True])
def test_the_columns_are_there_only_where_asked_for(
    paths: list[str], tmp_path: Path, flagged: bool
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    classifier = Classifier(FakeBackend(SIGNAL))
    outs = {suffix: tmp_path / f"rows.{suffix}" for suffix in ("jsonl", "csv", "parquet")}
    for out in outs.values():
        classify_files(classifier, paths, out, ClassifyOptions(flag_unknown=flagged))
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
        classify_files(classifier, paths, out, ClassifyOptions(flag_unknown=True), progress=stop)
    assert part_path(out).is_file()
    with pytest.raises(InputError, match="found rows of another job"):
        classify_files(classifier, paths, out, resume=True)


def test_the_command_says_what_the_model_lacks(
    tiny_model: Path, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", str(tiny_model), paths[0], "--flag-unknown"]) == 8
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "export it again with its images, or omit --flag-unknown" in captured.err
