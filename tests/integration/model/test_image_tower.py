"""The image tower: uint8 in, OpenCLIP's own features out, in torch and through ONNX Runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedapt.model.backbone import Backbone
from fedapt.model.image_tower import FEATURES, INPUT, ImageTower, image_tower
from fedapt.onnx.image_encoder import OrtEncoder, TorchEncoder, image_encoder
from fedapt.onnx.tower import image_tower_to_onnx, read_tower
from fedapt_runtime import Preprocessing
from fedapt_runtime.backends.ort import import_onnxruntime

TOLERANCE = 1e-5


def images(count: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tiny_backbone: Backbone) -> onnx.ModelProto:
    return image_tower_to_onnx(tiny_backbone)


def expected_features(backbone: Backbone, pixels: NDArray[np.uint8]) -> Tensor:
    """As OpenCLIP does it: ToTensor, Normalize, encode_image."""
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (backbone.preprocessing.mean, backbone.preprocessing.std)
    )
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return backbone.clip.encode_image((scaled - mean) / std)


def assert_close(found: Tensor | NDArray[np.float32], expected: Tensor) -> None:
    """To 1e-5 of a feature's length; the features differ from each other by far more."""
    error = (torch.as_tensor(found) - expected).abs().amax(-1) / expected.norm(dim=-1)
    assert float(error.max()) < TOLERANCE
    if len(expected) > 1:
        apart = (expected[0] - expected[1]).abs().amax() / expected[0].norm()
        assert float(apart) > 1000 * TOLERANCE


def test_the_torch_tower_is_open_clips(tiny_backbone: Backbone) -> None:
    pixels = images(3)
    with torch.inference_mode():
        found = image_tower(tiny_backbone)(torch.from_numpy(pixels))
    assert found.shape == (3, 32)
    assert_close(found, expected_features(tiny_backbone, pixels))


def test_normalisation_is_one_product_and_one_sum_by_hand() -> None:
    class Pixels(nn.Module):
        """Gives back what it is shown."""

        def encode_image(self, image: Tensor) -> Tensor:
            return image

    preprocessing = Preprocessing((1, 2), (0.5, 0.25, 0.0), (0.5, 1.0, 2.0), resize_mode="squash")
    tower = ImageTower(Pixels(), preprocessing)
    found = tower(torch.tensor([[[[0, 255, 51], [255, 0, 255]]]], dtype=torch.uint8))
    expected = torch.tensor([[[[-1.0, 1.0]], [[0.75, -0.25]], [[0.1, 0.5]]]])
    torch.testing.assert_close(found, expected)


def test_features_are_not_normalised(tiny_backbone: Backbone) -> None:
    norms = expected_features(tiny_backbone, images(5)).norm(dim=-1)
    assert float((norms - 1).abs().min()) > 0.1
    with torch.inference_mode():
        found = image_tower(tiny_backbone)(torch.from_numpy(images(5))).norm(dim=-1)
    torch.testing.assert_close(found, norms, rtol=1e-4, atol=0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_onnx_tower_is_the_torch_tower(
    tiny_backbone: Backbone, exported: onnx.ModelProto, count: int
) -> None:
    session = import_onnxruntime().InferenceSession(
        exported.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pixels = images(count)
    (found,) = session.run([FEATURES], {INPUT: pixels})
    assert found.dtype == np.float32
    assert_close(found, expected_features(tiny_backbone, pixels))


def test_the_onnx_tower_has_one_input_one_output_and_a_dynamic_batch(
    exported: onnx.ModelProto,
) -> None:
    onnx.checker.check_model(exported, full_check=True)
    (source,), (result,) = exported.graph.input, exported.graph.output
    assert (source.name, result.name) == ("images", "features")
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (source, result)
    ]
    assert shapes == [["batch", 64, 64, 3], ["batch", 32]]
    assert source.type.tensor_type.elem_type == onnx.TensorProto.UINT8


class PooledClip(nn.Module):
    """An image tower that ends as ResNet and EfficientNet do."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.pool = nn.AdaptiveAvgPool2d(1)

    def encode_image(self, image: Tensor) -> Tensor:
        return self.pool(image).flatten(1)


def test_pooling_is_exported_as_one_mean_and_the_backbone_left_as_it_is(
    tiny_backbone: Backbone,
) -> None:
    clip = PooledClip().eval()
    exported = image_tower_to_onnx(dataclasses.replace(tiny_backbone, clip=clip))
    assert isinstance(clip.pool, nn.AdaptiveAvgPool2d)
    operators = [node.op_type for node in exported.graph.node]
    assert operators.count("ReduceMean") + operators.count("GlobalAveragePool") == 1
    assert len(operators) < 10
    session = import_onnxruntime().InferenceSession(
        exported.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run([FEATURES], {INPUT: images(2)})
    preprocessing = tiny_backbone.preprocessing
    expected = (images(2).mean((1, 2)) / 255 - preprocessing.mean) / preprocessing.std
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_both_encoders_agree(tiny_backbone: Backbone) -> None:
    pixels = images(7)
    expected = expected_features(tiny_backbone, pixels)
    encoders = (OrtEncoder(tiny_backbone), TorchEncoder(tiny_backbone))
    for encoder in encoders:
        found = encoder.encode(pixels)
        assert found.dtype == np.float32
        assert_close(found, expected)
        assert encoder.width == 32
        assert encoder.preprocessing == tiny_backbone.preprocessing
    # features of different engines differ in their last bits and must not share a cache
    assert encoders[0].fingerprint != encoders[1].fingerprint
    assert all(tiny_backbone.image_sha256 in encoder.fingerprint for encoder in encoders)


def test_on_a_cpu_the_encoder_is_onnx_runtime(tiny_backbone: Backbone) -> None:
    assert isinstance(image_encoder(tiny_backbone), OrtEncoder)


def test_the_exported_tower_comes_from_the_cache(
    tiny_backbone: Backbone,
    exported: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path))
    exports: list[Backbone] = []

    def export(backbone: Backbone) -> onnx.ModelProto:
        exports.append(backbone)
        return exported

    monkeypatch.setattr("fedapt.onnx.tower.image_tower_to_onnx", export)
    first = read_tower(tiny_backbone)
    second = read_tower(tiny_backbone)
    assert len(exports) == 1
    assert second.SerializeToString() == first.SerializeToString()
    (path,) = tmp_path.rglob("*.onnx")
    path.write_bytes(b"\xff" * 100)
    read_tower(tiny_backbone)
    assert len(exports) == 2  # a damaged file is exported again


def test_a_cache_that_cannot_be_written_is_no_error(
    tiny_backbone: Backbone,
    exported: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("fedapt.onnx.tower.image_tower_to_onnx", lambda _: exported)
    assert read_tower(tiny_backbone) is exported
    assert (tmp_path / "file").read_text() == "in the way"
