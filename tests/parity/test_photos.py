"""The fused graph of `lite` on real photos: every test image of Office-Caltech10."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedapt.core.config import Config, DataConfig, TrainConfig
from fedapt.core.report import Reporter
from fedapt.run.train import train
from fedapt_export.export import export
from fedapt_export.parity import Parity
from fedapt_export.settings import ExportSettings
from tests.support.paths import PHOTOS, needs_photos

pytestmark = needs_photos


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("office") / "run"
    config = Config(data=DataConfig(root=str(PHOTOS)), train=TrainConfig(rounds=10, lr=0.1))
    evaluation = train(config, out, resume=False, device="cpu", reporter=Reporter())
    # ten rounds instead of fifty: most of the way from zero-shot's 84 % already
    assert evaluation.zero_shot_mean < 0.88 < 0.92 < evaluation.mean
    return out


@pytest.fixture(scope="module")
def parity(run: Path) -> Parity:
    settings = ExportSettings(parity_images=0, min_agreement=0.995)
    return export(run / "checkpoint.safetensors", run / "model.onnx", settings, Reporter()).parity


def test_every_test_photo_was_compared(parity: Parity) -> None:
    assert parity.images == 506


def test_onnx_computes_the_features_of_torch(parity: Parity) -> None:
    assert parity.feature_difference <= 1e-4
    assert parity.probability_difference <= 1e-4


def test_the_best_class_is_that_of_exact_personalised_prompts(parity: Parity) -> None:
    assert parity.agreement >= 0.995
    assert parity.one_hot > 0.8
    assert parity.exact_probability_difference < 0.1
