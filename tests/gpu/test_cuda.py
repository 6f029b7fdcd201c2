"""What runs on a GPU computes what the CPU computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedapt.core.config import read_config
from fedapt.core.report import Reporter
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.onnx.image_encoder import OrtEncoder, TorchEncoder, image_encoder
from fedapt.run.train import train
from fedapt_export.precision import MAX_FEATURE_DIFFERENCE
from fedapt_runtime import Classifier
from fedapt_runtime.backends.ort import PROVIDERS, import_onnxruntime
from tests.support.fusing import export_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def test_features_on_the_gpu_are_those_of_the_cpu(tiny_clip: Path) -> None:
    on_cpu, on_gpu = load_backbone(str(tiny_clip)), load_backbone(str(tiny_clip), device="cuda")
    assert isinstance(image_encoder(on_gpu), TorchEncoder)
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    expected = OrtEncoder(on_cpu).encode(images)
    np.testing.assert_allclose(TorchEncoder(on_gpu).encode(images), expected, atol=1e-4)


def test_training_on_the_gpu_gives_the_checkpoint_of_the_cpu(
    tmp_path: Path, tiny_run: Path
) -> None:
    config = read_config(tiny_run / "config.toml")
    train(config, tmp_path / "run", resume=False, device="cuda", reporter=Reporter())
    found = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    expected = load_checkpoint(tiny_run / "checkpoint.safetensors")
    assert set(found.learned) == {"meta_prompt", "adaptive_network"}
    for name, tensor in expected.learned.items():
        torch.testing.assert_close(found.learned[name], tensor, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.keys, expected.keys, rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_runtime_on_cuda_agrees_with_the_cpu(tiny_model: Path, batch: int) -> None:
    if PROVIDERS["cuda"] not in import_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider: install fedapt-runtime[gpu]")
    images = list(np.random.default_rng(1).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8))
    on_gpu, on_cpu = (Classifier.load(tiny_model, device=d)(images) for d in ("cuda", "cpu"))
    for a, b in zip(on_gpu, on_cpu, strict=True):
        assert a.label == b.label
        assert a.score == pytest.approx(b.score, abs=1e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 5e-2)])
def test_fused_operators_on_cuda_agree_with_the_cpu(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    tolerance: float,
) -> None:
    # a feature of 32 numbers moves more than one of hundreds
    monkeypatch.setitem(MAX_FEATURE_DIFFERENCE, "fp16", 2e-2)
    if PROVIDERS["cuda"] not in import_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider: install fedapt-runtime[gpu]")
    export_run(tiny_run, tmp_path / "plain.onnx")
    lowered = {"precision": precision, "operators": "onnxruntime", "force": True}
    export_run(tiny_run, tmp_path / "fused.onnx", **lowered, max_disagreement=1.0)
    on_gpu = Classifier.load(tmp_path / "fused.onnx", device="cuda")
    on_cpu = Classifier.load(tmp_path / "plain.onnx", device="cpu")
    for batch in (1, 3, 64):
        images = np.random.default_rng(batch).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)
        for _ in range(3):  # a size is recorded as a CUDA graph on its way
            found = on_gpu.backend.run(images).features
        expected = on_cpu.backend.run(images).features
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
