"""Hard mixing takes one text bank; a head goes only with a graph of its own mixing."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fedapt.cli.app import main
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.model.prompted_clip import GlobalModel
from fedapt.onnx.tower import read_tower
from fedapt.onnx.weights import open_model
from fedapt_export import precision as precision_module
from fedapt_export.fuse import fuse
from fedapt_export.model_file import read_manifest
from fedapt_export.precision import MAX_FEATURE_DIFFERENCE
from fedapt_runtime import Classifier
from fedapt_runtime.errors import ModelFileError
from tests.support.fusing import export_run


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> dict[str, Path]:
    """The tiny run with hard mixing, whole and as a head; and a head with exact mixing."""
    folder = tmp_path_factory.mktemp("hard")
    paths = {
        name: folder / name for name in ("model.onnx", "head.safetensors", "exact.safetensors")
    }
    export_run(tiny_run, paths["model.onnx"], mixing="hard")
    export_run(tiny_run, paths["head.safetensors"], mixing="hard", head_only=True)
    export_run(tiny_run, paths["exact.safetensors"], head_only=True)
    return paths


def noise(count: int = 16) -> np.ndarray:
    shape = (count, 64, 64, 3)
    bright = np.random.default_rng(0).integers(1, 5, (count, 1, 1, 1))
    return (np.random.default_rng(1).integers(0, 256, shape) // bright).astype(np.uint8)


@pytest.fixture(scope="module")
def soft(tiny_run: Path, tiny_backbone: Backbone) -> GlobalModel:
    """The tiny run's model at a temperature at which two domains share an image."""
    model = load_checkpoint(tiny_run / "checkpoint.safetensors").to_global_model(tiny_backbone)
    return dataclasses.replace(model, temperature=1.0)


def run(model: GlobalModel, backbone: Backbone, mixing: str) -> list[np.ndarray]:
    """`logits`, `domain_weights` and `features` of noise through the fused graph."""
    head = dataclasses.replace(model, mixing=mixing).head
    session = open_model(fuse(read_tower(backbone), head, "tiny"), "cpu", "a test")
    names = ["logits", "domain_weights", "features"]
    found: list[np.ndarray] = session.run(names, {"images": noise()})
    return found


def test_logits_are_those_of_the_likeliest_domains_bank(
    soft: GlobalModel, tiny_backbone: Backbone
) -> None:
    logits, weights, features = run(soft, tiny_backbone, "hard")
    # by hand: the prompt of one key alone, V * (1 + E_n), encoded class by class
    with torch.inference_mode():
        banks = [soft.text(soft.context * (1 + key)).double().numpy() for key in soft.keys]
    network = soft.adaptive_network.double().numpy()
    scale = math.exp(float(tiny_backbone.clip.get_parameter("logit_scale")))
    chosen = set()
    for row, feature, weight in zip(logits, features.astype(np.float64), weights, strict=True):
        best = int(np.argmax(network @ feature))
        unit = feature / np.linalg.norm(feature)
        np.testing.assert_allclose(row, scale * banks[best] @ unit, rtol=0, atol=1e-4)
        assert weight.tolist() == [float(n == best) for n in range(2)]
        other = scale * banks[1 - best] @ unit
        assert np.abs(other - row).max() > 1e-2  # the banks are told apart
        chosen.add(best)
    assert chosen == {0, 1}


def test_exact_mixing_is_something_else(soft: GlobalModel, tiny_backbone: Backbone) -> None:
    exact, hardened = (run(soft, tiny_backbone, mixing) for mixing in ("exact", "hard"))
    np.testing.assert_array_equal(exact[2], hardened[2])
    np.testing.assert_array_equal(exact[1].argmax(-1), hardened[1].argmax(-1))
    assert ((exact[1].max(-1) > 0.5) & (exact[1].max(-1) < 0.99)).all()
    assert np.abs(exact[0] - hardened[0]).max() > 1e-2


def test_the_torch_model_says_the_same(soft: GlobalModel, tiny_backbone: Backbone) -> None:
    logits, _, features = run(soft, tiny_backbone, "hard")
    model = dataclasses.replace(soft, mixing="hard")
    found = model.head.logits(torch.from_numpy(features))
    np.testing.assert_allclose(found.numpy(), logits, rtol=0, atol=1e-4)


def test_the_manifest_names_the_mixing(hard: dict[str, Path], tiny_model: Path) -> None:
    for path, mixing in ((hard["model.onnx"], "hard"), (tiny_model, "exact")):
        assert read_manifest(onnx.load(path), path).mixing == mixing
    assert Classifier.load(hard["model.onnx"]).manifest.mixing == "hard"


@pytest.mark.parametrize(("model", "head"), [("exact", "hard"), ("hard", "exact")])
def test_a_head_of_another_mixing_is_refused(
    model: str,
    head: str,
    hard: dict[str, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = {"exact": tiny_model, "hard": hard["model.onnx"]}
    heads = {"exact": hard["exact.safetensors"], "hard": hard["head.safetensors"]}
    text = f"found a head exported with mixing {head}; expected {model}, which is in the model's"
    with pytest.raises(ModelFileError, match=text) as caught:
        Classifier.load(models[model], head=heads[head])
    assert caught.value.exit_code == 8
    out = tmp_path / "model.onnx"
    out.write_bytes(b"older")
    assert main(["swap-head", str(models[model]), str(heads[head]), "--out", str(out)]) == 8
    message = capsys.readouterr().err
    assert text in message
    assert f"export the head again with mixing {model}" in message
    assert out.read_bytes() == b"older"
    assert main(["swap-head", str(models[head]), str(heads[head]), "--out", str(out)]) == 0


def test_a_head_of_the_same_mixing_gives_the_same_model(
    hard: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "swapped.onnx"
    named = [str(hard["model.onnx"]), str(hard["head.safetensors"])]
    assert main(["swap-head", *named, "--out", str(out)]) == 0
    swapped, whole = (onnx.load(path).graph for path in (out, hard["model.onnx"]))
    assert swapped.SerializeToString() == whole.SerializeToString()
    predictions = Classifier.load(*named[:1], head=named[1])(list(noise(4)))
    assert all(sorted(p.domain_weights.values()) == [0, 1] for p in predictions)


@pytest.mark.parametrize(("precision", "opset"), [("fp16", 20), ("bf16", 22)])
def test_swapping_keeps_the_graphs_precision(
    precision: str,
    opset: int,
    hard: dict[str, Path],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MAX_FEATURE_DIFFERENCE, precision, 0.1)
    monkeypatch.setattr(precision_module, "_time_in_turns", lambda s, _: [1.0, 2.0][: len(s)])
    model = tmp_path / "model.onnx"
    export_run(tiny_run, model, precision=precision, force=True)
    head = hard["exact.safetensors"]
    before = onnx.load(model)
    copy = Path(shutil.copy(model, tmp_path / "copy.onnx"))
    assert main(["swap-head", str(copy), str(head), "--out", str(copy)]) == 0
    after = onnx.load(copy)
    manifest = read_manifest(after, copy)
    assert (manifest.precision, manifest.opset, manifest.mixing) == (precision, opset, "exact")
    assert {o.version for o in after.opset_import if o.domain == ""} == {opset}
    # the same checkpoint's head: the graph is the same to the byte
    assert after.graph.SerializeToString() == before.graph.SerializeToString()
    if precision == "fp16":  # which ONNX Runtime runs on a CPU
        swapped = Classifier.load(model, head=head)
        assert (swapped.manifest.precision, swapped.manifest.opset) == (precision, opset)
