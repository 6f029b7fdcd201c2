"""int8: scales from training images, weights per channel, and labels that stay."""

from __future__ import annotations

import copy
import platform
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from fedapt.cli.app import main
from fedapt.core.config import Config, DataConfig, TrainConfig
from fedapt.core.errors import DataError, ExportError
from fedapt.core.report import Reporter
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.onnx.patches import PRODUCT
from fedapt.onnx.tower import read_tower
from fedapt.onnx.weights import open_model, read_values
from fedapt.run.train import train
from fedapt_export import images as images_module
from fedapt_export.images import collect_calibration, collect_images, root_of_run
from fedapt_export.int8 import FLOAT_CONVOLUTIONS, to_int8
from fedapt_runtime import Preprocessing, machine
from fedapt_runtime.backends.choose import load_backend
from fedapt_runtime.options import LoadOptions
from tests.support.fusing import export_run
from tests.support.paths import PHOTOS, needs_photos

Pixels = NDArray[np.uint8]
Towers = Callable[[bool], onnx.ModelProto]
both = pytest.mark.parametrize("symmetric", [False, True], ids=["uint8", "symmetric"])


def has_vnni() -> bool:
    """Whether the processor adds up products of 8 bits in 32, as Arm's and Intel's later ones."""
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not flags.is_file():
        return True
    return "vnni" in flags.read_text("utf-8")


needs_vnni = pytest.mark.skipif(
    not has_vnni(),
    reason="ONNX Runtime adds up int8 products in 16 bits on x86 without VNNI, which saturates",
)


def some_images(backbone: Backbone, count: int) -> Pixels:
    """Blocks of colour: a structure that noise does not have."""
    height, width = backbone.preprocessing.size
    blocks = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return blocks[:, np.arange(height) * 4 // height][:, :, np.arange(width) * 4 // width]


def quantise_once(tower: onnx.ModelProto, images: Pixels) -> Towers:
    made: dict[bool, onnx.ModelProto] = {}

    def give(symmetric: bool) -> onnx.ModelProto:
        if symmetric not in made:
            made[symmetric] = to_int8(copy.deepcopy(tower), images, symmetric=symmetric)
        return made[symmetric]

    return give


@pytest.fixture(scope="module")
def lite() -> Backbone:
    return load_backbone("lite")


@pytest.fixture(scope="module")
def lite_towers(lite: Backbone) -> Towers:
    return quantise_once(read_tower(lite), some_images(lite, 8))


@pytest.fixture(scope="module")
def tiny_towers(tiny_backbone: Backbone) -> Towers:
    return quantise_once(read_tower(tiny_backbone), some_images(tiny_backbone, 16))


class Graph:
    """Who makes a value, and what is constant."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.values = {t.name: read_values(t) for t in model.graph.initializer}

    def of_kind(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def dequantised(self, name: str) -> onnx.NodeProto | None:
        maker = self.makers.get(name)
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def axis(self, node: onnx.NodeProto) -> int | None:
        return next((a.i for a in node.attribute if a.name == "axis"), None)


def unit(model: onnx.ModelProto, images: Pixels) -> NDArray[np.float32]:
    session = open_model(model, "cpu", "a test")
    (found,) = session.run(["features"], {"images": images})
    rows: NDArray[np.float32] = found / np.linalg.norm(found, axis=-1, keepdims=True)
    return rows


# the graph


@both
def test_weights_have_a_scale_per_channel(symmetric: bool, lite_towers: Towers) -> None:
    graph = Graph(lite_towers(symmetric))
    quantised = [n for n in graph.of_kind("Conv") if graph.dequantised(n.input[1])]
    assert len(quantised) > 30
    largest: list[int] = []
    for node in quantised:
        weight = graph.dequantised(node.input[1])
        assert weight is not None
        values, scale, zero = (graph.values[name] for name in weight.input)
        assert values.dtype == zero.dtype == np.int8
        assert graph.axis(weight) == 0
        assert scale.shape == zero.shape == (values.shape[0],)
        assert not zero.any()
        assert len(np.unique(scale)) > 1
        largest.extend(np.abs(values.reshape(len(values), -1).astype(int)).max(1))
        assert graph.dequantised(node.input[0]) is not None
    # a channel uses its whole range, but for the few whose bias needs a wider scale
    assert np.mean(np.array(largest) >= 126) > 0.9


@both
def test_quantised_weights_are_the_float_ones(
    symmetric: bool, lite: Backbone, lite_towers: Towers
) -> None:
    before = Graph(read_tower(lite))
    after = Graph(lite_towers(symmetric))
    kept = {node.name: node for node in before.of_kind("Conv")}
    checked = 0
    for node in after.of_kind("Conv"):
        if (weight := after.dequantised(node.input[1])) is None:
            continue
        values, scale, _ = (after.values[name] for name in weight.input)
        expected = before.values[kept[node.name].input[1]]
        error = np.abs(values * scale.reshape(-1, 1, 1, 1) - expected)
        assert (error <= 0.501 * scale.reshape(-1, 1, 1, 1)).all()
        checked += 1
    assert checked > 30


@both
def test_first_convolutions_and_last_projection_stay_float(
    symmetric: bool, lite: Backbone, lite_towers: Towers
) -> None:
    assert FLOAT_CONVOLUTIONS == 5
    order = [node.name for node in read_tower(lite).graph.node if node.op_type == "Conv"]
    graph = Graph(lite_towers(symmetric))
    nodes = {node.name: node for node in graph.nodes}
    for i, name in enumerate(order):
        is_float = nodes[name].input[1] in graph.values
        assert is_float == (i < FLOAT_CONVOLUTIONS)
        if is_float:
            assert graph.values[nodes[name].input[1]].dtype == np.float32
    last = graph.of_kind("MatMul", "Gemm")[-1]
    assert graph.values[last.input[1]].dtype == np.float32
    assert graph.dequantised(last.input[0]) is None


def test_symmetric_means_int8_around_zero(lite_towers: Towers, tiny_towers: Towers) -> None:
    for towers in (lite_towers, tiny_towers):
        graph = Graph(towers(True))
        nodes = graph.of_kind("QuantizeLinear", "DequantizeLinear")
        zeros = [graph.values[node.input[2]] for node in nodes]
        assert len(zeros) > 5
        assert not any(zero.any() for zero in zeros)
        assert {zero.dtype for zero in zeros} <= {np.dtype(np.int8), np.dtype(np.int32)}
        quantised = graph.of_kind("QuantizeLinear")
        assert {graph.values[n.input[2]].dtype for n in quantised} == {np.dtype(np.int8)}


def test_otherwise_activations_are_uint8(lite_towers: Towers) -> None:
    graph = Graph(lite_towers(False))
    zeros = [graph.values[node.input[2]] for node in graph.of_kind("QuantizeLinear")]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.uint8)}
    assert any(zero.any() for zero in zeros)


@both
def test_of_a_vit_products_with_weights_alone(symmetric: bool, tiny_towers: Towers) -> None:
    graph = Graph(tiny_towers(symmetric))
    with_weights = with_values = 0
    embedding, *products, last = graph.of_kind("MatMul", "Gemm")
    assert embedding.name == PRODUCT
    assert graph.values[embedding.input[1]].dtype == np.float32
    for node in products:
        weight = graph.dequantised(node.input[1])
        if weight is not None and weight.input[0] in graph.values:
            values, scale, _ = (graph.values[name] for name in weight.input)
            assert values.dtype == np.int8
            assert graph.axis(weight) == 1
            assert scale.shape == (values.shape[1],)
            assert graph.dequantised(node.input[0]) is not None
            with_weights += 1
        else:  # q k' and softmax(..) v
            assert [graph.dequantised(name) for name in node.input] == [None, None]
            assert not set(node.input) & graph.values.keys()
            with_values += 1
    # q, k, v, out and two of the MLP in each of two blocks; two products of attention in each
    assert (with_weights, with_values) == (12, 4)
    assert graph.values[last.input[1]].dtype == np.float32
    floating = graph.of_kind("LayerNormalization", "Softmax", "Gelu", "Add", "Conv")
    for node in floating:
        assert all(graph.dequantised(name) is None for name in node.input)


@needs_vnni
@both
def test_the_tiny_vits_features_are_near(
    symmetric: bool, tiny_backbone: Backbone, tiny_towers: Towers
) -> None:
    images = some_images(tiny_backbone, 16)
    expected = unit(read_tower(tiny_backbone), images)
    found = unit(tiny_towers(symmetric), images)
    cosine = (expected * found).sum(-1)
    assert 0.9 < cosine.min() < 0.999999
    others = (expected @ expected.T)[~np.eye(len(expected), dtype=bool)]
    assert np.median(others) < cosine.min()


def test_a_reduced_range_leaves_room_in_16_bits(tiny_backbone: Backbone) -> None:
    images = some_images(tiny_backbone, 16)
    tower = read_tower(tiny_backbone)
    reduced = to_int8(tower, images, symmetric=False, reduced_range=True)

    def largest(model: onnx.ModelProto) -> int:
        weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
        return max(int(np.abs(numpy_helper.to_array(t).astype(int)).max()) for t in weights)

    assert 2 * 255 * largest(reduced) < 1 << 15
    assert 2 * 255 * largest(to_int8(tower, images, symmetric=False)) > 1 << 15
    cosine = (unit(tower, images) * unit(reduced, images)).sum(-1)
    assert 0.9 < cosine.min() < 0.999999


def test_a_processor_that_may_saturate_is_warned_of(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "whose int8 products may saturate (no VNNI; export with a reduced range)"
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPUINFO", cpuinfo)
    options: Any = {"precision": "int8", "force": True}
    export_run(tiny_run, tmp_path / "whole.onnx", **options)
    export_run(tiny_run, tmp_path / "reduced.onnx", reduced_range=True, **options)
    export_run(tiny_run, tmp_path / "float.onnx")

    def warned(name: str, flags: str) -> bool:
        cpuinfo.write_text(flags)
        return (
            told in load_backend(tmp_path / f"{name}.onnx", LoadOptions(device="cpu")).description
        )

    avx2 = "flags : avx2"
    assert warned("whole", avx2)
    assert not warned("reduced", avx2)
    assert not warned("float", avx2)
    for flags in (
        "flags : avx2 avx_vnni",
        "flags : avx512_vnni",
        "flags: amx_int8",
        "Features:",
    ):
        assert not warned("whole", flags)


def test_the_same_images_give_the_same_bytes(tiny_backbone: Backbone, tiny_towers: Towers) -> None:
    images = some_images(tiny_backbone, 16)
    again = to_int8(read_tower(tiny_backbone), images, symmetric=False)
    assert again.SerializeToString() == tiny_towers(False).SerializeToString()
    dark = to_int8(read_tower(tiny_backbone), images // 8, symmetric=False)
    assert dark.SerializeToString() != again.SerializeToString()


def test_the_float32_tower_is_left_as_it_was(tiny_backbone: Backbone) -> None:
    tower = read_tower(tiny_backbone)
    before = tower.SerializeToString()
    to_int8(tower, some_images(tiny_backbone, 1), symmetric=False)
    assert tower.SerializeToString() == before


def test_what_the_quantiser_refuses_is_told(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime import quantization

    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyError("a tensor\nthat is not there")

    monkeypatch.setattr(quantization, "quantize_static", fail)
    with pytest.raises(
        ExportError,
        match=r"^precision int8: found KeyError: .*a tensor.*; expected a graph that ONNX Runtime "
        "can quantise",
    ) as caught:
        to_int8(read_tower(tiny_backbone), some_images(tiny_backbone, 1), symmetric=False)
    assert caught.value.exit_code == 6


# lite on photos


@needs_vnni
@needs_photos
def test_labels_of_lite_stay_on_photos(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = Config(data=DataConfig(root=str(PHOTOS)), train=TrainConfig(rounds=10, lr=0.1))
    train(config, run, resume=False, device="cpu", reporter=Reporter())
    out = tmp_path / "int8.onnx"
    # speed is measured elsewhere: this asks for the labels alone
    exported = export_run(run, out, precision="int8", force=True)
    report = exported.precision
    assert report is not None
    assert (report.precision, report.images) == ("int8", 506)
    assert report.disagreement <= 0.01
    assert report.bytes < 0.5 * report.fp32_bytes
    assert exported.manifest.precision == "int8"


# calibration images


def paths_of(collect: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Path]]:
    asked: list[Path] = []
    real = images_module.decode_ahead

    def record(paths: Iterable[Any], preprocessing: Preprocessing, **options: Any) -> Any:
        asked.extend(paths)
        return real(paths, preprocessing, **options)

    with monkeypatch.context() as patch:
        patch.setattr(images_module, "decode_ahead", record)
        return collect(), asked


def test_calibration_takes_training_images_and_no_test_image(
    tiny_run: Path, tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_run / "checkpoint.safetensors"
    checkpoint = load_checkpoint(path)
    (pixels, line), train_paths = paths_of(
        lambda: collect_calibration(checkpoint, root_of_run(path), 0), monkeypatch
    )
    _, test_paths = paths_of(lambda: collect_images(checkpoint, root_of_run(path), 0), monkeypatch)
    assert (len(train_paths), len(test_paths)) == (48, 12)
    assert set(train_paths).isdisjoint(test_paths)
    assert set(train_paths) | set(test_paths) == set(tiny_images.glob("*/*/*.png"))
    assert pixels.shape == (48, 64, 64, 3)
    assert pixels.dtype == np.uint8
    assert line == "48 training images of data"


def test_a_number_of_them_is_drawn_from_all_domains_and_always_the_same(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_run / "checkpoint.safetensors"
    checkpoint = load_checkpoint(path)

    def collect() -> Any:
        return collect_calibration(checkpoint, root_of_run(path), 10)

    (_, line), first = paths_of(collect, monkeypatch)
    _, second = paths_of(collect, monkeypatch)
    assert first == second
    assert len(set(first)) == 10
    assert {p.parts[-3] for p in first} == {"photo", "sketch"}
    assert line == "10 training images of data"


def break_images(paths: Iterable[Path]) -> None:
    for path in paths:
        path.write_text("no image at all")


def export_int8(checkpoint: Path, out: Path, *more: str) -> int:
    named = ["export", str(checkpoint), "--out", str(out), "--precision", "int8"]
    return main([*named, "--min-agreement", "0", "--force", *more])


def test_unreadable_calibration_images_are_counted(
    tiny_run: Path,
    tiny_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(tiny_images, tmp_path / "mine"))
    path = tiny_run / "checkpoint.safetensors"
    checkpoint = load_checkpoint(path)
    _, paths = paths_of(lambda: collect_calibration(checkpoint, folder, 0), monkeypatch)
    break_images(paths[::16])
    pixels, line = collect_calibration(checkpoint, folder, 0)
    assert len(pixels) == 45
    assert line == "45 training images of mine, without 3 unreadable ones"
    out = tmp_path / "model.onnx"
    more = ["--calibration", str(folder), "--calibration-images", "0", "--max-disagreement", "1"]
    assert export_int8(path, out, *more) == 0
    assert f"calibrating on {line}" in capsys.readouterr().err
    types = {t.data_type for t in onnx.load(out).graph.initializer}
    assert TensorProto.INT8 in types


def test_no_readable_calibration_image_is_4(
    tiny_run: Path, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_images, tmp_path / "mine"))
    break_images(folder.glob("*/*/*.png"))
    out = tmp_path / "model.onnx"
    out.write_bytes(b"older")
    path = tiny_run / "checkpoint.safetensors"
    assert export_int8(path, out, "--calibration", str(folder)) == 4
    message = capsys.readouterr().err
    assert f"{folder}: found no readable image among 48; expected images to" in message
    assert "Traceback" not in message
    assert out.read_bytes() == b"older"


def test_without_a_run_folder_calibration_is_asked_for(
    tiny_run: Path, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Path(shutil.copy(tiny_run / "checkpoint.safetensors", tmp_path))
    with pytest.raises(DataError, match=r"^precision int8: found no calibration images"):
        collect_calibration(load_checkpoint(alone), root_of_run(alone), 0)
    out = tmp_path / "model.onnx"
    assert export_int8(alone, out, "--data", str(tiny_images)) == 4
    message = capsys.readouterr().err
    assert "To do: name a folder of domains with --calibration." in message
    assert not out.exists()
    pixels, _ = collect_calibration(load_checkpoint(alone), tiny_images, 5)
    assert len(pixels) == 5
