"""Half precision: numbers near float32's, the right types in the graph, and no collapse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fedapt.core.errors import ExportError
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.image_tower import FEATURES, INPUT
from fedapt.onnx.tower import image_tower_to_onnx, read_tower
from fedapt.onnx.weights import hold_weights, open_model
from fedapt_export import half as half_module
from fedapt_export.fuse import fuse, read_opset
from fedapt_export.half import emulate_bfloat16, store_in_half, to_half
from fedapt_export.head import zero_shot_head
from fedapt_export.precision import to_runnable
from tests.support.normalising import normalise
from tests.support.paths import PHOTOS, needs_photos
from tests.support.tiny import write_tiny_clip

LIMITS = {"fp16": 2e-3, "bf16": 2e-2}
# 32 numbers instead of hundreds: each is a larger share of a unit feature
TINY_LIMITS = {"fp16": 5e-3, "bf16": 4e-2}
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
OPSETS = {"fp16": 20, "bf16": 22}
BATCHES = (1, 2, 5, 32)

Rows = NDArray[np.float32]
Pixels = NDArray[np.uint8]
both = pytest.mark.parametrize("precision", ["fp16", "bf16"])


def features(model: onnx.ModelProto, images: Pixels, precision: str = "fp32") -> Rows:
    session = open_model(to_runnable(model, precision), "cpu", "a test")
    found: Rows = session.run([FEATURES], {INPUT: images})[0]
    return found


def unit(rows: Rows) -> Rows:
    found: Rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return found


def noise(backbone: Backbone, count: int) -> Pixels:
    shape = (count, *backbone.preprocessing.size, 3)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def lite() -> Backbone:
    return load_backbone("lite")


@pytest.fixture(scope="module")
def towers(tiny_backbone: Backbone) -> Callable[[str], onnx.ModelProto]:
    """Float32 and half towers of the tiny ViT, made once."""
    made = {"fp32": image_tower_to_onnx(tiny_backbone)}

    def give(precision: str) -> onnx.ModelProto:
        if precision not in made:
            made[precision] = to_half(made["fp32"], precision)
        return made[precision]

    return give


# numbers


@both
def test_the_tiny_vit_has_the_features_of_float32(
    precision: str, towers: Callable[[str], onnx.ModelProto], tiny_backbone: Backbone
) -> None:
    for count in BATCHES:
        images = noise(tiny_backbone, count)
        expected = unit(features(towers("fp32"), images))
        found = features(towers(precision), images, precision)
        assert found.dtype == np.float32
        assert 1e-6 < np.abs(unit(found) - expected).max() <= TINY_LIMITS[precision]
        if count > 1:
            assert np.abs(expected[0] - expected[1]).max() > 0.05


@needs_photos
@both
def test_lite_has_the_features_of_float32_on_photos(precision: str, lite: Backbone) -> None:
    paths = sorted(PHOTOS.glob("*/*/*.jpg"))
    paths = paths[:: len(paths) // 32][:32]
    photos = np.stack([lite.preprocessing.load(path) for path in paths])
    assert len(photos) == 32
    tower = read_tower(lite)
    lowered = to_half(tower, precision)
    for count in BATCHES:
        expected = unit(features(tower, photos[:count]))
        found = unit(features(lowered, photos[:count], precision))
        assert 1e-6 < np.abs(found - expected).max() <= LIMITS[precision]
        if count > 1:
            assert np.abs(expected[0] - expected[1]).max() > 0.05


# types


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
IN_FLOAT32 = {"LayerNormalization", "Softmax", "ReduceMean", "GlobalAveragePool"}
IN_HALF = {"MatMul", "Gemm", "Conv", "Gelu", "Mul", "Add", "Clip", "Concat"}


def check_types(model: onnx.ModelProto, precision: str, operators: set[str]) -> None:
    onnx.checker.check_model(model, full_check=True)
    types = types_of(model)
    seen = set()
    has_product = False
    for node in model.graph.node:
        has_product |= node.op_type in ("Conv", "MatMul")
        found = {types[name] for name in [*node.input, *node.output] if name} & FLOATS
        if node.op_type in IN_FLOAT32 or not has_product:
            assert node.op_type == "Cast" or found <= {TensorProto.FLOAT}, node.name
        elif node.op_type in IN_HALF:
            assert found <= {TYPES[precision]}, node.name
        seen.add(node.op_type)
    assert operators <= seen


@both
def test_types_of_a_vit(precision: str, towers: Callable[[str], onnx.ModelProto]) -> None:
    operators = {"LayerNormalization", "Softmax", "MatMul", "Gelu", "Add"}
    check_types(towers(precision), precision, operators)


@both
def test_types_of_a_convolutional_tower(precision: str, lite: Backbone) -> None:
    check_types(to_half(read_tower(lite), precision), precision, {"Conv", "Clip", "ReduceMean"})


@both
def test_border_and_opset(precision: str, towers: Callable[[str], onnx.ModelProto]) -> None:
    tower, lowered = towers("fp32"), towers(precision)
    for before, after in (
        (tower.graph.input, lowered.graph.input),
        (tower.graph.output, lowered.graph.output),
    ):
        assert [v.SerializeToString() for v in before] == [v.SerializeToString() for v in after]
    assert [(o.domain, o.version) for o in lowered.opset_import] == [("", OPSETS[precision])]
    assert read_opset(tower) == 20


@both
def test_weights_of_products_are_half_as_large_and_stored_once(
    precision: str, towers: Callable[[str], onnx.ModelProto]
) -> None:
    tower, lowered = towers("fp32"), towers(precision)
    sizes = dict.fromkeys(FLOATS, 0)
    for tensor in lowered.graph.initializer:
        if tensor.data_type in FLOATS:
            sizes[tensor.data_type] += int(np.prod(tensor.dims))
    total = sum(int(np.prod(t.dims)) for t in tower.graph.initializer if t.data_type in FLOATS)
    assert sizes[TYPES[precision]] > 0.95 * total
    # only scales and offsets of the LayerNorms are float32
    norms = [n for n in lowered.graph.node if n.op_type == "LayerNormalization"]
    kept = {name for node in norms for name in node.input[1:]}
    float32 = {t.name for t in lowered.graph.initializer if t.data_type == TensorProto.FLOAT}
    assert float32 == kept
    read = {name for node in lowered.graph.node for name in node.input}
    assert {t.name for t in lowered.graph.initializer} <= read
    assert lowered.ByteSize() < 0.6 * tower.ByteSize()


def test_the_float32_tower_is_left_as_it_was(towers: Callable[[str], onnx.ModelProto]) -> None:
    tower = towers("fp32")
    before = tower.SerializeToString()
    to_half(tower, "fp16")
    emulate_bfloat16(to_half(tower, "bf16"))
    assert tower.SerializeToString() == before


@both
def test_the_head_stays_in_float32(
    precision: str, towers: Callable[[str], onnx.ModelProto], tiny_backbone: Backbone
) -> None:
    head = zero_shot_head(tiny_backbone, ("mug", "red square"))
    fused = fuse(towers(precision), head, "tiny")
    assert read_opset(fused) == OPSETS[precision]
    types = types_of(fused)
    names = {"text_banks", "gram", "adaptive_network", "temperature", "logit_scale"}
    names |= {"logits", "domain_weights", FEATURES}
    names |= {name for name in types if name.startswith("head.")}
    kinds = {types[name] for name in names}
    assert kinds <= {TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL}
    assert len(names) > 20
    images = noise(tiny_backbone, 5)
    rows = features(fused, images, precision)
    np.testing.assert_array_equal(rows, features(towers(precision), images, precision))


# bfloat16 without operators for it


def small_graph(*nodes: onnx.NodeProto, weights: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """float32 `x` [n, 4] -> `features`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", "m"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run_small(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = open_model(model, "cpu", "a test")
    found: NDArray[np.float32] = session.run(["features"], {"x": x})[0]
    return found


def test_emulated_bfloat16_is_torchs() -> None:
    # sixteenths with few digits: sums are exact in float32, so that only the rounding counts
    rng = np.random.default_rng(0)
    first = (rng.integers(-999, 999, (4, 8)) / 16).astype(np.float32)
    bias = (rng.integers(-999, 999, 8) / 16).astype(np.float32)
    gain = (rng.integers(-99, 99, 8) / 16).astype(np.float32)
    second = (rng.integers(-999, 999, (8, 6)) / 16).astype(np.float32)
    x = (rng.integers(-999, 999, (50, 4)) / 16).astype(np.float32)
    model = small_graph(
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("Softmax", ["b"], ["probabilities"], axis=-1),
        helper.make_node("Mul", ["b", "gain"], ["c"]),
        helper.make_node("Mul", ["c", "probabilities"], ["d"]),
        helper.make_node("MatMul", ["c", "second"], ["features"]),
        helper.make_node("Identity", ["d"], ["unused"]),
        weights={"first": first, "bias": bias, "gain": gain, "second": second},
    )
    lowered = to_half(model, "bf16")
    kinds = types_of(lowered)
    assert kinds["a"] == kinds["b"] == kinds["c"] == kinds["d"] == TensorProto.BFLOAT16
    assert kinds["probabilities"] == TensorProto.FLOAT
    found = run_small(emulate_bfloat16(lowered), x)

    def half(value: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(value).bfloat16()

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left.double() @ right.double()).float().bfloat16()

    summed = product(half(x), half(first)) + half(bias)
    assert summed.dtype == torch.bfloat16
    expected = product(summed * half(gain), half(second)).float().numpy()
    np.testing.assert_array_equal(found, expected)
    exact = ((x @ first + bias) * gain) @ second
    assert np.abs(found - exact).max() > 1e-3 * np.abs(exact).max()  # rounding was seen


def test_emulation_has_no_bfloat16_left_but_in_casts(
    towers: Callable[[str], onnx.ModelProto],
) -> None:
    model = emulate_bfloat16(towers("bf16"))
    types = types_of(model)
    for node in model.graph.node:
        if node.op_type != "Cast":
            assert TensorProto.BFLOAT16 not in {types[n] for n in [*node.input, *node.output] if n}
    rounded = sum(
        node.op_type == "Cast" and node.attribute[0].i == TensorProto.BFLOAT16
        for node in model.graph.node
    )
    halves = types_of(towers("bf16"))
    produced = {name for node in towers("bf16").graph.node for name in node.output}
    assert rounded == sum(halves[name] == TensorProto.BFLOAT16 for name in produced)


# weights stored in float16


def test_stored_weights_are_those_of_float16_and_products_are_in_float32(
    tiny_backbone: Backbone,
) -> None:
    tower = hold_weights(read_tower(tiny_backbone))
    stored = store_in_half(tower)
    onnx.checker.check_model(stored, full_check=True)
    rounded = copy.deepcopy(tower)
    for tensor in rounded.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.nbytes > 1024:
            half = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for count in BATCHES:
        images = noise(tiny_backbone, count)
        np.testing.assert_array_equal(features(stored, images), features(rounded, images))
    assert np.abs(features(stored, images) - features(tower, images)).max() > 1e-6
    assert stored.ByteSize() < 0.55 * tower.ByteSize()


def test_only_large_float32_weights_are_stored_in_half(lite: Backbone) -> None:
    stored = store_in_half(read_tower(lite))
    kinds = {t.name: (t.data_type, len(t.raw_data)) for t in stored.graph.initializer}
    half = [name for name, (kind, _) in kinds.items() if kind == TensorProto.FLOAT16]
    assert len(half) > 40
    assert all(name.endswith(".fp16") for name in half)
    assert all(size <= 1024 for kind, size in kinds.values() if kind != TensorProto.FLOAT16)
    casts = [node for node in stored.graph.node if node.op_type == "Cast" and node.input[0] in half]
    assert len(casts) == len(half)


def test_a_weight_beyond_float16_cannot_be_stored(tiny_backbone: Backbone) -> None:
    tower = hold_weights(read_tower(tiny_backbone))
    large = max(tower.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(large).copy()
    for value, is_stored in ((65504.0, True), (65536.0, False)):
        values.reshape(-1)[5] = value
        large.CopyFrom(numpy_helper.from_array(values, large.name))
        if is_stored:
            store_in_half(tower)
        else:
            with pytest.raises(ExportError, match=r"found weights of up to 6\.55e\+04 in"):
                store_in_half(tower)


# weights beyond float16


def with_weight(largest: float) -> onnx.ModelProto:
    weight = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    weight[2, 1] = largest
    return small_graph(
        helper.make_node("MatMul", ["x", "weight"], ["features"]), weights={"weight": weight}
    )


@pytest.mark.parametrize("largest", [65536.0, -1e5, 1e30])
def test_a_weight_beyond_float16_is_refused_and_bfloat16_takes_it(largest: float) -> None:
    to_half(with_weight(65504.0), "fp16")
    with pytest.raises(
        ExportError,
        match=r"^precision: found weights of up to [\d.e+]+ in weight; expected at most 6\.55e\+04"
        r", the largest fp16\. To do: export with `precision` bf16 or fp32",
    ) as caught:
        to_half(with_weight(largest), "fp16")
    assert caught.value.exit_code == 6
    assert f"{abs(largest):.3g}" in str(caught.value)
    x = np.ones((1, 4), np.float32)
    found = run_small(emulate_bfloat16(to_half(with_weight(largest), "bf16")), x)
    np.testing.assert_allclose(found[0, 1], largest, rtol=1e-2)


def test_a_large_scale_of_a_norm_is_no_obstacle() -> None:
    model = small_graph(
        helper.make_node("MatMul", ["x", "weight"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "scale"], ["b"], axis=-1),
        helper.make_node("Softmax", ["b"], ["features"], axis=-1),
        weights={
            "weight": np.eye(4, dtype=np.float32),
            "scale": np.full(4, 1e6, np.float32),
        },
    )
    lowered = to_half(model, "fp16")
    x = np.array([[1, 2, 3, 5]], np.float32)
    np.testing.assert_allclose(run_small(lowered, x), run_small(model, x), atol=1e-6)


# no collapse where activations are large


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A ViT whose residual stream reaches thousands, as those of large CLIPs do."""
    backbone = load_backbone(str(write_tiny_clip(tmp_path_factory.mktemp("loud") / "clip", 3)))
    visual: Any = backbone.clip.get_submodule("visual")
    with torch.no_grad():
        block = visual.transformer.resblocks[0]
        block.mlp.c_proj.weight *= 2000
        block.attn.out_proj.weight *= 2000
        visual.transformer.resblocks[1].mlp.c_proj.weight *= 500
    return backbone


def stream(backbone: Backbone, images: Pixels) -> float:
    """The largest value that a LayerNorm of the blocks is given."""
    largest: list[float] = []
    visual: Any = backbone.clip.get_submodule("visual")
    hook = visual.transformer.resblocks[1].ln_1.register_forward_pre_hook(
        lambda _, arguments: largest.append(float(arguments[0].abs().max()))
    )
    pixels = torch.from_numpy(normalise(backbone.preprocessing, images)).permute(0, 3, 1, 2)
    try:
        backbone.clip.encode_image(pixels)
    finally:
        hook.remove()
    return max(largest)


def decompose_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every LayerNormalization as the nine operators that older opsets write it with."""
    result = copy.deepcopy(model)
    graph = result.graph
    constants = {"two": np.array(2, np.float32), "last": np.array([-1], np.int64)}
    nodes: list[onnx.NodeProto] = []
    for i, node in enumerate(model.graph.node):
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        x, scale, offset = node.input
        n = f"norm{i}."
        epsilon = next(a.f for a in node.attribute if a.name == "epsilon")
        constants[n + "eps"] = np.array(epsilon, np.float32)
        make = helper.make_node
        nodes += [
            make("ReduceMean", [x, "last"], [n + "mean"], keepdims=1),
            make("Sub", [x, n + "mean"], [n + "centred"]),
            make("Pow", [n + "centred", "two"], [n + "squared"]),
            make("ReduceMean", [n + "squared", "last"], [n + "variance"], keepdims=1),
            make("Add", [n + "variance", n + "eps"], [n + "safe"]),
            make("Sqrt", [n + "safe"], [n + "std"]),
            make("Div", [n + "centred", n + "std"], [n + "unit"]),
            make("Mul", [n + "unit", scale], [n + "scaled"]),
            make("Add", [n + "scaled", offset], [node.output[0]]),
        ]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    onnx.checker.check_model(result, full_check=True)
    return result


def true_float16(model: onnx.ModelProto, images: Pixels) -> Rows:
    """Features with every value of the graph in its own type.

    ONNX Runtime's CPU computes most float16 operators in float32, which hides an overflow.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found: Rows = ReferenceEvaluator(model).run([FEATURES], {INPUT: images})[0]
        return unit(found)


@both
def test_a_loud_vit_keeps_its_features(precision: str, loud: Backbone) -> None:
    images = noise(loud, 4)
    assert 3000 < stream(loud, images) < 60000
    tower = image_tower_to_onnx(loud)
    expected = unit(features(tower, images))
    assert np.abs(expected[0] - expected[1]).max() > 0.02  # they are told apart
    lowered = to_half(tower, precision)
    found = unit(features(lowered, images, precision))
    assert np.abs(found - expected).max() <= TINY_LIMITS[precision]
    if precision == "fp16":
        assert np.abs(true_float16(lowered, images) - expected).max() <= TINY_LIMITS["fp16"]


def test_a_norm_in_float16_loses_them(loud: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rule of exact operators is for: without it the same measure fails."""
    images = noise(loud, 4)
    tower = image_tower_to_onnx(loud)
    decomposed = decompose_norms(tower)
    expected = unit(features(tower, images))
    np.testing.assert_allclose(true_float16(decomposed, images), expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(half_module, "_EXACT", set())
    monkeypatch.setattr(half_module, "_PIECES", set())
    found = true_float16(to_half(decomposed, "fp16"), images)
    assert not np.abs(found - expected).max() <= 10 * TINY_LIMITS["fp16"]  # NaN too


def test_a_norm_that_was_traced_in_pieces_keeps_them(loud: Backbone) -> None:
    images = noise(loud, 4)
    tower = image_tower_to_onnx(loud)
    expected = unit(features(tower, images))
    found = true_float16(to_half(decompose_norms(tower), "fp16"), images)
    assert np.abs(found - expected).max() <= TINY_LIMITS["fp16"]
