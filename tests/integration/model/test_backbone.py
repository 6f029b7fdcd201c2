"""OpenCLIP models by name, at their true size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedapt.core.errors import ModelError
from fedapt.model.backbone import hash_tensors, load_backbone


def test_random_weights_by_name_are_the_same_every_time() -> None:
    first = load_backbone("ViT-S-32-alt", "random")
    torch.rand(3)
    assert load_backbone("ViT-S-32-alt", "random").sha256 == first.sha256
    assert first.label == "ViT-S-32-alt (random)"


def test_a_weights_file_is_loaded(tmp_path: Path) -> None:
    backbone = load_backbone("ViT-S-32-alt", "random")
    path = tmp_path / "weights.safetensors"
    state = {name: tensor.contiguous() for name, tensor in backbone.clip.state_dict().items()}
    state["visual.proj"] = state["visual.proj"] * 2
    save_file(state, str(path))
    loaded = load_backbone("ViT-S-32-alt", str(path))
    assert loaded.sha256 == hash_tensors(state.items())
    assert loaded.sha256 != backbone.sha256
    # and a file for another architecture is none for this one
    with pytest.raises(
        ModelError,
        match=r"found no usable weights \(tensors that do not fit the model, .*of another shape: ",
    ):
        load_backbone("ViT-S-16-alt", str(path))
