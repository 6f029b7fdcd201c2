"""Two copies of a text tower give what one gives, and reach all of the joint space."""

from __future__ import annotations

from importlib.resources import as_file, files

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.lite.load import APART, WEIGHTS, build_lite
from fedapt.model.lite.pretrain import narrow_config
from fedapt.model.lite.side_by_side import choose_apart
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.prompted_clip import prompted_text, zero_shot_features
from fedapt.model.text_tower import TextTower

NAMES = ("back pack", "bike", "laptop computer")


def read(name: str) -> dict[str, Tensor]:
    with as_file(files("fedapt.model.lite") / name) as path:
        return {key: tensor.float() for key, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def lite() -> Backbone:
    return load_backbone("lite")


@torch.inference_mode()
def test_a_text_has_the_features_of_the_narrow_tower(lite: Backbone) -> None:
    narrow = import_open_clip().CLIP(**narrow_config())
    packed = read(WEIGHTS)
    packed.pop("visual.head.proj.weight")
    rows, known = packed.pop("token_rows").long(), packed.pop("token_embedding")
    narrow.load_state_dict(packed, strict=False)
    narrow.token_embedding.weight[:] = 0
    narrow.token_embedding.weight[rows] = known
    ids = import_open_clip().SimpleTokenizer()([f"a photo of a {name}." for name in NAMES])
    expected = narrow.eval().encode_text(ids, normalize=True)
    assert zero_shot_features(lite, NAMES) == pytest.approx(expected, abs=2e-6)
    assert build_lite().encode_text(ids, normalize=True) == pytest.approx(expected, abs=2e-6)


@torch.inference_mode()
def test_prompts_reach_all_of_the_joint_space(lite: Backbone) -> None:
    assert torch.linalg.matrix_rank(build_lite().text_projection) == lite.joint_width
    apart = torch.linalg.qr(read(APART)["apart"].T).Q  # [512, 256]: where the narrow tower is blind
    text = prompted_text(lite, NAMES, 4)
    generator = torch.Generator().manual_seed(0)
    contexts = 0.1 * torch.randn(50, 3, 4, lite.text_tower.width, generator=generator)
    assert (text(contexts) @ apart).norm(dim=-1).min() > 0.1
    half = contexts.shape[-1] // 2
    contexts[..., half:] = contexts[..., :half]
    assert (text(contexts) @ apart).norm(dim=-1).max() < 1e-3


def test_the_other_directions_stand_upright_on_the_projection() -> None:
    projection, apart = read(WEIGHTS)["text_projection"], read(APART)["apart"]
    assert (apart @ projection.T).abs().max() < 0.01
    assert apart == pytest.approx(choose_apart(projection, 0), abs=1e-3)
    with pytest.raises(ValueError, match="reach more than half of 400 directions"):
        choose_apart(projection[:, :400], 0)


def test_the_narrow_tower_is_half_of_it(lite: Backbone) -> None:
    tower = TextTower(import_open_clip().CLIP(**narrow_config()), "lite")
    assert 2 * tower.width == lite.text_tower.width
