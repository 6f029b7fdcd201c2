"""The text tower on embeddings: OpenCLIP's own features, and the towers that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedapt.core.errors import ModelError, ModelNotSupported
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.text_tower import TextTower

VISION = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 16}
TEXT: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 32,
    "heads": 2,
    "layers": 2,
}
TEXTS = ["a photo of a mug.", "x", "a laptop computer beside a bike and a pair of headphones"]


def build(kind: str = "CLIP", quick_gelu: bool = False, embed_dim: int = 16, **text: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = getattr(import_open_clip(), kind)(
            embed_dim, dict(VISION), TEXT | text, quick_gelu=quick_gelu
        )
        for parameter in clip.parameters():  # away from the zeros and ones of a fresh tower
            parameter.data += 0.05 * torch.randn_like(parameter)
    return clip.requires_grad_(False).eval()


def features(clip: Any, ids: Tensor, length: int) -> Tensor:
    tower = TextTower(clip, "test").eval()
    eos = (ids == 49407).int().argmax(-1)
    return tower(tower.token_embedding(ids[:, :length]), eos)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return import_open_clip().SimpleTokenizer()(TEXTS)


SUPPORTED = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "a projection with bias": {"proj_bias": True},
    "no projection": {"proj_type": "none", "embed_dim": 32},
    "layer scale": {"ls_init_value": 0.5},
    "eos by its id": {"pool_type": "eos", "eos_id": 49407},
}


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("options", SUPPORTED.values(), ids=SUPPORTED.keys())
def test_cut_at_eos_the_features_are_open_clips(
    kind: str, options: dict[str, Any], ids: Tensor
) -> None:
    clip = build(kind, **options)
    expected = clip.encode_text(ids)
    longest = int(ids.argmax(-1).max()) + 1
    assert longest < 20
    for length in (longest, 77):
        error = (features(clip, ids, length) - expected).abs().amax(-1)
        assert float((error / expected.norm(dim=-1)).max()) < 1e-6
    assert float((expected[0] - expected[1]).abs().max()) > 1e-2  # they tell texts apart


def test_another_position_gives_other_features(ids: Tensor) -> None:
    clip = build()
    tower = TextTower(clip, "test").eval()
    wrong = tower(tower.token_embedding(ids), ids.argmax(-1) - 1)
    assert float((wrong - clip.encode_text(ids)).abs().max()) > 1e-2


def test_nothing_behind_eos_reaches_the_features(ids: Tensor) -> None:
    tower = TextTower(build(), "test").eval()
    embeddings = tower.token_embedding(ids)
    eos = ids.argmax(-1)
    expected = tower(embeddings, eos)
    behind, before = embeddings.clone(), embeddings.clone()
    for row, position in enumerate(eos.tolist()):
        behind[row, position + 1 :] = 100.0
        before[row, position - 1] = 100.0
    torch.testing.assert_close(tower(behind, eos), expected, rtol=0, atol=1e-6)
    assert float((tower(before, eos) - expected).abs().max()) > 1e-2


def test_width_and_length_are_the_towers() -> None:
    tower = TextTower(build(context_length=20), "test")
    assert (tower.width, tower.max_length) == (32, 20)


def test_a_cut_tower_keeps_its_gradient(ids: Tensor) -> None:
    tower = TextTower(build(), "test").eval()
    embeddings = tower.token_embedding(ids[:, :20]).clone().requires_grad_()
    tower(embeddings, ids.argmax(-1)).sum().backward()
    assert embeddings.grad is not None
    assert float(embeddings.grad[1, :3].abs().min(-1).values.max()) > 0
    assert float(embeddings.grad[1, 3:].abs().max()) == 0  # "x" ends at position 2


REFUSED = {
    "not causal": ({"no_causal_mask": True}, "a text tower that is not causal"),
    "first": ({"pool_type": "first"}, "a text tower that pools with 'first'"),
    "last": ({"pool_type": "last"}, "a text tower that pools with 'last'"),
    "none": ({"pool_type": "none"}, "a text tower that pools with 'none'"),
}


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize(("options", "found"), REFUSED.values(), ids=REFUSED.keys())
def test_towers_that_cannot_be_cut_are_refused(
    kind: str, options: dict[str, Any], found: str
) -> None:
    with pytest.raises(
        ModelNotSupported,
        match=f"model test: found {found}; expected a causal OpenCLIP text transformer that pools",
    ) as caught:
        TextTower(build(kind, **options), "test")
    assert isinstance(caught.value, ModelError)
    assert caught.value.exit_code == 4


def test_a_tower_with_a_class_token_is_refused() -> None:
    with pytest.raises(ModelNotSupported, match="found a text tower that pools at an extra class"):
        TextTower(build("CustomTextCLIP", embed_cls=True), "test")


def test_a_hugging_face_tower_is_refused() -> None:
    class HFTextEncoder(nn.Module):
        """What OpenCLIP wraps around a model of transformers has no embedding table of its own."""

        attn_mask = torch.zeros(2, 2)

    clip = nn.Module()
    clip.text = HFTextEncoder()
    with pytest.raises(ModelNotSupported, match="found a text tower of class HFTextEncoder"):
        TextTower(clip, "test")
