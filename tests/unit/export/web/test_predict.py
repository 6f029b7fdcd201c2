"""The page's predictions against the runtime's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fedapt_runtime.prediction import softmax
from fedapt_runtime.unknown import calibrate_signal
from tests.support.manifests import make_manifest
from tests.support.node import needs_node, run_module

pytestmark = needs_node

BODY = "return JSON.stringify(module.predict(value.outputs, value.manifest));"


def predict(folder: Path, outputs: dict[str, list[float]], manifest: object) -> dict[str, object]:
    value = {"outputs": outputs, "manifest": manifest}
    made: dict[str, object] = json.loads(run_module(folder, "predict.js", BODY, value))
    return made


def test_a_prediction_is_the_runtimes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=7).astype(np.float32) * 5
    classes, domains = tuple("abcdefg"), ("x", "y")
    manifest = json.loads(make_manifest(classes, domains).to_json())
    outputs = {"logits": logits.tolist(), "domain_weights": [0.25, 0.75]}
    made = predict(tmp_path, outputs, manifest)
    expected = softmax(logits)
    order = np.argsort(-expected)[:5]
    assert [name for name, _ in made["top_k"]] == [classes[i] for i in order]
    assert [score for _, score in made["top_k"]] == pytest.approx(expected[order], abs=1e-6)
    assert made["label"] == classes[order[0]]
    assert made["score"] == made["top_k"][0][1]
    assert made["routed_to"] == "y"
    assert made["domain_weights"] == {"x": 0.25, "y": 0.75}
    assert "unknown" not in made


def test_the_signal_is_the_runtimes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    network = rng.normal(size=(2, 8)).astype(np.float32)
    centres = rng.normal(size=(6, 8)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=-1, keepdims=True)
    held_out = rng.normal(size=(50, 8)).astype(np.float32)
    signal = calibrate_signal(network, centres, np.arange(6) % 2, held_out, keep=0.9)
    manifest = make_manifest(("a", "b"), ("x", "y"))
    manifest = dataclasses.replace(manifest, unknown=signal.to_block())
    flags = []
    for row in held_out[:4].tolist() + (held_out[4:6] * 9).tolist():
        outputs = {"logits": [1.0, 0.0], "domain_weights": [0.5, 0.5], "features": row}
        made = predict(tmp_path, outputs, json.loads(manifest.to_json()))
        (expected,) = signal.score(np.asarray([row], np.float32))
        assert made["unknown_score"] == pytest.approx(expected, abs=1e-4)
        assert made["unknown"] == bool(expected > signal.threshold)
        flags.append(made["unknown"])
    assert False in flags


def test_nan_is_an_error(tmp_path: Path) -> None:
    manifest = json.loads(make_manifest(("a", "b"), ("x",)).to_json())
    value = {"outputs": {"logits": [1, None], "domain_weights": [1]}, "manifest": manifest}
    body = "value.outputs.logits[1] = NaN; " + BODY
    made = json.loads(run_module(tmp_path, "predict.js", body, value))
    assert made == {"error": "the model returned NaN or infinity"}
