"""A federation whose server learns sums alone: the result, what crosses the wire, who drops out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from fedapt.core.errors import ConfigError, FederationError
from fedapt.federation.flower.secure import MASKED, STAGES, UNMASK
from fedapt.model.backbone import Backbone
from fedapt.train.methods import METHODS
from tests.support.grid import DirectGrid
from tests.support.nodes import configure, connect, open_session, run
from tests.support.tiny import write_tiny_images

DOMAINS = ("cartoon", "painting", "photo", "sketch")
SHARED = [name for name, method in METHODS.items() if method.sends and not method.owned]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four domains, three classes, six images each."""
    return write_tiny_images(tmp_path_factory.mktemp("secure") / "data", 6, DOMAINS)


def stages_of(grid: DirectGrid) -> list[str]:
    return [m.metadata.message_type.partition(".")[2] for m in grid.messages]


@pytest.mark.parametrize("method", SHARED)
@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_secure_mean_is_the_mean(
    method: str, weighting: str, images: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    settings = (f"train.method={method}", f"train.weighting={weighting}")
    plain = open_session(configure(images, tiny_clip, *settings), tiny_backbone)
    config = configure(images, tiny_clip, *settings, "federation.secure=true")
    secure = open_session(config, tiny_backbone)
    connect(plain)
    connect(secure)
    expected, found = run(plain), run(secure)
    start = plain.begin().learned
    for name, tensor in expected.learned.items():
        # the encoding's error is 2^-33 at most; the rest is float32's last bit, two rounds long
        torch.testing.assert_close(found.learned[name], tensor, rtol=3e-7, atol=2e-8)
    assert any(bool((found.learned[n] != start[n]).any()) for n in start)
    for one, other in zip(expected.records, found.records, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert other.get("accuracy") == one.get("accuracy")
        assert other["replies"] == 4
        assert "clipped_values" not in other
