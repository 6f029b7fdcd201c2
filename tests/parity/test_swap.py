"""A head by itself makes of any model with the same CLIP what a whole export would have made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from fedapt.cli.app import main
from fedapt_runtime import Classifier, Prediction
from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.head import read_head
from tests.support.fusing import save_head
from tests.support.tiny import write_tiny_clip, write_tiny_images


def train(images: Path, run: Path, clip: Path, rounds: int) -> Path:
    named = ["--data", str(images), "--out", str(run), "--model", str(clip)]
    small = ["--rounds", str(rounds), "--lr", "0.1", "--context-length", "4"]
    assert main(["train", *named, *small]) == 0
    return run / "checkpoint.safetensors"


def export(checkpoint: Path, out: Path, *more: str) -> Path:
    assert main(["export", str(checkpoint), "--out", str(out), "--min-agreement", "0", *more]) == 0
    return out


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> dict[str, Path]:
    """Another federation on the same CLIP, with a further domain and a further class."""
    folder = tmp_path_factory.mktemp("grown")
    images = write_tiny_images(folder / "data", per_class=5, domains=("neon", "photo", "sketch"))
    for domain in images.iterdir():
        shutil.copytree(domain / "stripes", domain / "bars")
    checkpoint = train(images, folder / "run", tiny_clip, 2)
    return {
        "model": export(checkpoint, folder / "model.onnx"),
        "head": export(checkpoint, folder / "head.safetensors", "--head-only"),
        "images": images,
    }


def classify(classifier: Classifier, images: Path) -> list[Prediction]:
    return classifier(sorted(images.glob("*/*/00[01].png")), top_k=2)


def test_the_runtime_takes_a_head_with_another_number_of_classes_and_domains(
    grown: dict[str, Path], tiny_model: Path
) -> None:
    swapped = Classifier.load(tiny_model, head=grown["head"])
    assert swapped.manifest.domains == ("neon", "photo", "sketch")
    assert swapped.manifest.classes == ("bars", "blue disc", "red square", "stripes")
    whole = classify(Classifier.load(grown["model"]), grown["images"])
    for a, b in zip(classify(swapped, grown["images"]), whole, strict=True):
        assert (a.label, a.routed_to) == (b.label, b.routed_to)
        assert a.score == pytest.approx(b.score, abs=1e-6)


def test_the_models_own_head_is_untouched(grown: dict[str, Path], tiny_model: Path) -> None:
    before = classify(Classifier.load(tiny_model), grown["images"])
    Classifier.load(tiny_model, head=grown["head"])
    assert classify(Classifier.load(tiny_model), grown["images"]) == before


def test_swap_head_gives_the_graph_of_a_whole_export(
    grown: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copy(tiny_model, tmp_path / "model.onnx"))
    assert main(["swap-head", str(model), str(grown["head"]), "--out", str(model)]) == 0
    swapped, whole = onnx.load(model), onnx.load(grown["model"])
    assert swapped.graph.SerializeToString() == whole.graph.SerializeToString()
    found, expected = (json.loads(m.metadata_props[0].value) for m in (swapped, whole))
    # a head alone is compared behind features, and a whole graph from pixels
    assert "feature_difference" not in found["parity"]
    for manifest in (found, expected):
        del manifest["parity"], manifest["content_sha256"]
    assert found == expected


def test_a_head_is_small(grown: dict[str, Path]) -> None:
    # banks [32, 3 * 4], Gram matrices [3, 4 * 3], network [32, 3], two scalars, and a manifest
    assert grown["head"].stat().st_size < 4 * (32 * 12 + 36 + 96 + 2) + 3000


def test_a_head_of_another_clip_is_refused(
    tmp_path: Path, tiny_model: Path, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_clip(tmp_path / "other", seed=7)
    checkpoint = train(tiny_images, tmp_path / "run", other, 1)
    head = export(checkpoint, tmp_path / "head.safetensors", "--head-only")
    with pytest.raises(ModelFileError, match="found a head of a CLIP with hash"):
        Classifier.load(tiny_model, head=head)
    out = tmp_path / "swapped.onnx"
    capsys.readouterr()
    assert main(["swap-head", str(tiny_model), str(head), "--out", str(out)]) == 8
    assert "the model's CLIP" in capsys.readouterr().err
    assert not out.exists()


def test_swap_head_refuses_what_is_no_model(
    grown: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "swapped.onnx"
    for model in (grown["head"], tmp_path / "absent.onnx"):
        assert main(["swap-head", str(model), str(grown["head"]), "--out", str(out)]) == 6
        assert "a file that onnx cannot read" in capsys.readouterr().err
    assert not out.exists()


def rewrite(head: Path, out: Path, **changes: np.ndarray) -> Path:
    save_head(load_file(str(head)) | changes, read_head(head).manifest, out)
    return out


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"gram": np.zeros((3, 11), np.float32)}, "for 4 classes and 3 domains"),
        ({"temperature": np.array(np.nan, np.float32)}, "tensors with NaN or infinity"),
        ({"gram": np.zeros((3, 12), np.float64)}, "a tensor of F64"),
        ({"extra": np.zeros(1, np.float32)}, "tensors .*'extra'"),
    ],
)
def test_a_head_with_wrong_tensors_is_refused(
    grown: dict[str, Path], tmp_path: Path, changes: dict[str, np.ndarray], text: str
) -> None:
    assert read_head(rewrite(grown["head"], tmp_path / "same.safetensors")).tensors
    with pytest.raises(ModelFileError, match=text):
        read_head(rewrite(grown["head"], tmp_path / "wrong.safetensors", **changes))


def test_a_damaged_head_is_refused_wherever_it_is_cut(
    grown: dict[str, Path], tmp_path: Path
) -> None:
    whole = grown["head"].read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="expected a head written by"):
            read_head(path)
    with pytest.raises(ModelFileError, match="No such file"):
        read_head(tmp_path / "absent.safetensors")


def test_a_header_that_points_outside_is_refused(tmp_path: Path) -> None:
    for offsets in ([0, 1 << 40], [-4, 0], [8, 4]):
        entry = {"dtype": "F32", "shape": [1], "data_offsets": offsets}
        header = json.dumps({"gram": entry}).encode()
        path = tmp_path / "head.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(ModelFileError, match="a damaged file"):
            read_head(path)
