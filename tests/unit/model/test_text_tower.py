"""The text tower on embeddings: OpenCLIP's own features, and the towers that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedapt.core.errors import ModelError, ModelNotSupported
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.text_tower import TextTower
from fedapt.model.tokens import to_prompt_tokenizer, tokenize_texts

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
    assert (tower.width, tower.layout.most) == (32, 20)


def test_a_cut_tower_keeps_its_gradient(ids: Tensor) -> None:
    tower = TextTower(build(), "test").eval()
    embeddings = tower.token_embedding(ids[:, :20]).clone().requires_grad_()
    tower(embeddings, ids.argmax(-1)).sum().backward()
    assert embeddings.grad is not None
    assert float(embeddings.grad[1, :3].abs().min(-1).values.max()) > 0
    assert float(embeddings.grad[1, 3:].abs().max()) == 0  # "x" ends at position 2


# tokens that stand before all others


def tower_and_embeddings(ids: Tensor, **options: Any) -> tuple[TextTower, Tensor, Tensor]:
    tower = TextTower(build(**options), "test").eval()
    return tower, tower.token_embedding(ids[:, :20]), ids.argmax(-1)


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("length", [1, 2])
def test_a_prefix_encoded_once_gives_the_same_features(kind: str, length: int, ids: Tensor) -> None:
    tower, embeddings, eos = tower_and_embeddings(ids, kind=kind)
    prefix = tower.encode_prefix(embeddings[:, :length])
    assert len(prefix) == length
    assert len(prefix.blocks) == TEXT["layers"]
    found = tower(embeddings[:, length:], eos - length, prefix)
    torch.testing.assert_close(found, tower(embeddings, eos), rtol=0, atol=2e-6)


def test_one_prefix_stands_before_every_row(ids: Tensor) -> None:
    tower, embeddings, eos = tower_and_embeddings(ids)
    start = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    whole = torch.cat([start.expand(3, -1, -1), embeddings], dim=1)
    expected = tower(whole, eos + 5)
    prefix = tower.encode_prefix(start)
    torch.testing.assert_close(tower(embeddings, eos, prefix), expected, rtol=0, atol=2e-6)
    repeated = prefix.repeat(3)
    torch.testing.assert_close(tower(embeddings, eos, repeated), expected, rtol=0, atol=2e-6)
    assert float((tower(embeddings, eos) - expected).abs().max()) > 1e-2  # the prefix matters


def test_repeated_prefixes_stand_in_blocks(ids: Tensor) -> None:
    tower, embeddings, eos = tower_and_embeddings(ids)
    starts = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(2))
    prefix = tower.encode_prefix(starts).repeat(3)  # 1 1 1 2 2 2
    assert len(prefix) == 4
    assert prefix.blocks[0].keys.shape[0] == 6
    found = tower(embeddings.repeat(2, 1, 1), eos.repeat(2), prefix)
    for start, rows in zip(starts, found.split(3), strict=True):
        whole = torch.cat([start.expand(3, -1, -1), embeddings], dim=1)
        torch.testing.assert_close(rows, tower(whole, eos + 4), rtol=0, atol=2e-6)


def test_the_gradient_goes_through_a_prefix(ids: Tensor) -> None:
    tower, embeddings, eos = tower_and_embeddings(ids)
    plain, split = (embeddings.clone().requires_grad_() for _ in range(2))
    tower(plain, eos).square().sum().backward()
    prefix = tower.encode_prefix(split[:, :2])
    tower(split[:, 2:], eos - 2, prefix).square().sum().backward()
    assert plain.grad is not None
    assert split.grad is not None
    largest = float(plain.grad.abs().max())
    torch.testing.assert_close(split.grad, plain.grad, rtol=0, atol=1e-5 * largest)
    assert float(split.grad[:, :2].abs().max()) > 1e-2 * largest


# matrix products in half precision


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=["bf16", "fp16"]
)
def test_half_precision_is_close_and_changes_no_weight(
    dtype: torch.dtype, limit: float, ids: Tensor
) -> None:
    clip = build()
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    exact = TextTower(clip, "test").eval()
    half = TextTower(clip, "test", dtype).eval()
    embeddings, eos = exact.token_embedding(ids[:, :20]), ids.argmax(-1)
    expected, found = exact(embeddings, eos), half(embeddings, eos)
    assert found.dtype == torch.float32
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 1e-6 < float(error.max()) < limit
    prefix = half.encode_prefix(embeddings[:, :2])
    assert prefix.blocks[0].keys.dtype == torch.float32
    split = half(embeddings[:, 2:], eos - 2, prefix)
    assert float(((split - expected).norm(dim=-1) / expected.norm(dim=-1)).max()) < limit
    after = clip.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert half.blocks[0].fc.weight.dtype == dtype
    assert half.ln_final.weight.dtype == half.token_embedding.weight.dtype == torch.float32


# towers that are entered with whole rows, or that pool elsewhere


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("pool", ["argmax", "last"])
def test_a_tower_that_sees_padding_gets_open_clips_features(
    kind: str, pool: str, ids: Tensor
) -> None:
    clip = build(kind, no_causal_mask=True, pool_type=pool, proj_bias=True)
    tower = TextTower(clip, "test").eval()
    assert not tower.is_causal
    assert (tower.layout.whole, tower.layout.pooled) == (True, "last" if pool == "last" else "EOS")
    tokenizer = to_prompt_tokenizer(import_open_clip().SimpleTokenizer(), "x")
    tokens = tokenize_texts(tokenizer, tuple(TEXTS), tower.layout)
    assert torch.equal(tokens.ids, ids)
    found = tower(tower.token_embedding(tokens.ids), tokens.pooled)
    torch.testing.assert_close(found, clip.encode_text(ids), rtol=0, atol=2e-6)
    cut = tower(tower.token_embedding(ids[:, :20]), tokens.pooled.clamp(max=19))
    assert float((cut - found).abs().max()) > 1e-3  # padding is seen: a cut would be wrong


def test_cocas_class_token_gives_open_clips_features(ids: Tensor) -> None:
    clip = build("CustomTextCLIP", embed_cls=True, context_length=76)
    tower = TextTower(clip, "test").eval()
    tokenizer = to_prompt_tokenizer(import_open_clip().SimpleTokenizer(), "x")
    full = "mug " * 74  # 76 tokens: no padding is left
    for texts in (tuple(TEXTS), (full, "x"), (full,), ("mug " * 73, "x")):
        tokens = tokenize_texts(tokenizer, texts, tower.layout)
        whole = import_open_clip().SimpleTokenizer()(list(texts), context_length=76)
        expected = clip.encode_text(whole)
        found = tower(tower.token_embedding(tokens.ids), tokens.pooled)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        split = tower.token_embedding(tokens.ids)
        prefix = tower.encode_prefix(split[:1, :1])
        behind = tower(split[:, 1:], tokens.pooled - 1, prefix)
        torch.testing.assert_close(behind, expected, rtol=0, atol=2e-6)


REFUSED = {
    "first": ({"pool_type": "first"}, "a text tower that pools with 'first'"),
    "none": ({"pool_type": "none"}, "a text tower that pools with 'none'"),
}


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize(("options", "found"), REFUSED.values(), ids=REFUSED.keys())
def test_towers_that_cannot_be_cut_are_refused(
    kind: str, options: dict[str, Any], found: str
) -> None:
    with pytest.raises(
        ModelNotSupported,
        match=f"model test: found {found}; expected an OpenCLIP text transformer that pools",
    ) as caught:
        TextTower(build(kind, **options), "test")
    assert isinstance(caught.value, ModelError)
    assert caught.value.exit_code == 4


def test_a_tower_that_masks_its_padding_is_refused() -> None:
    clip = build("CustomTextCLIP", no_causal_mask=True)
    clip.text.use_pad_mask = True
    with pytest.raises(ModelNotSupported, match="found a text tower that masks its padding"):
        TextTower(clip, "test")


def test_a_class_token_with_another_mask_is_refused() -> None:
    clip = build("CustomTextCLIP", embed_cls=True)
    clip.text.correct_cls_mask = True
    found = "found a text tower with a class token that is masked otherwise than CoCa's"
    with pytest.raises(ModelNotSupported, match=found):
        TextTower(clip, "test")
    with pytest.raises(ModelNotSupported, match=found):
        TextTower(build("CustomTextCLIP", embed_cls=True, no_causal_mask=True), "test")


def test_a_hugging_face_tower_is_refused() -> None:
    class HFTextEncoder(nn.Module):
        """What OpenCLIP wraps around a model of transformers has no embedding table of its own."""

        attn_mask = torch.zeros(2, 2)

    clip = nn.Module()
    clip.text = HFTextEncoder()
    with pytest.raises(ModelNotSupported, match="found a text tower of class HFTextEncoder"):
        TextTower(clip, "test")


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
def test_a_tower_with_other_blocks_is_refused(kind: str) -> None:
    clip = build(kind)
    blocks = (clip.text if kind == "CustomTextCLIP" else clip).transformer.resblocks

    class OtherBlock(type(blocks[1])):
        """Another forward pass under the same weights."""

    blocks[1].__class__ = OtherBlock
    with pytest.raises(
        ModelNotSupported, match="found a text tower with blocks of class OtherBlock; expected an"
    ):
        TextTower(clip, "test")
