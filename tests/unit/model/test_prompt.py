"""The meta prompt, the keys, and the personalised prompt by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedapt.core.config import PromptConfig
from fedapt.core.errors import ConfigError
from fedapt.model.backbone import Backbone
from fedapt.model.prompt import draw_keys, personalise, start_context

# two keys of M = 1 and W = 2
KEYS = torch.tensor([[[0.5, 0.25]], [[0.0, 1.0]]])


def test_one_weight_vector_on_a_shared_context() -> None:
    context = torch.tensor([[2.0, -4.0]])
    # 1 + 0.25 * (0.5, 0.25) + 0.75 * (0, 1) = (1.125, 1.8125)
    found = personalise(context, KEYS, torch.tensor([0.25, 0.75]))
    assert found.tolist() == [[2.25, -7.25]]


def test_one_weight_vector_on_a_context_per_class() -> None:
    context = torch.tensor([[[2.0, -4.0]], [[1.0, 1.0]], [[0.0, 8.0]]])
    found = personalise(context, KEYS, torch.tensor([0.25, 0.75]))
    assert found.tolist() == [[[2.25, -7.25]], [[1.125, 1.8125]], [[0.0, 14.5]]]


def test_a_batch_of_weights_on_a_shared_context() -> None:
    context = torch.tensor([[2.0, -4.0]])
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]])
    found = personalise(context, KEYS, weights)
    assert found.tolist() == [[[3.0, -5.0]], [[2.0, -8.0]], [[2.25, -7.25]]]


def test_a_batch_of_weights_on_a_context_per_class() -> None:
    context = torch.tensor([[[2.0, -4.0]], [[1.0, 1.0]]])
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 0.0]])
    found = personalise(context, KEYS, weights)
    assert found.shape == (3, 2, 1, 2)
    assert found.tolist() == [
        [[[3.0, -5.0]], [[1.5, 1.25]]],
        [[[2.25, -7.25]], [[1.125, 1.8125]]],
        [[[2.0, -4.0]], [[1.0, 1.0]]],
    ]


def test_a_batch_as_large_as_the_number_of_classes_is_not_mistaken_for_them() -> None:
    context = torch.randn(2, 1, 2, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = personalise(context, KEYS, weights)
    for row, w in zip(found, weights, strict=True):
        assert torch.equal(row, personalise(context, KEYS, w))


# the keys

KINDS = ["uniform", "normal", "orthogonal"]


def test_keys_are_uniform_in_0_1() -> None:
    keys = draw_keys(4, 24, 64, seed=0)
    assert keys.shape == (4, 24, 64)
    assert keys.dtype == torch.float32
    assert float(keys.min()) >= 0
    assert float(keys.max()) < 1
    assert float(keys.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(keys.var()) == pytest.approx(1 / 12, abs=0.005)
    assert torch.equal(draw_keys(4, 24, 64, seed=0, kind="uniform"), keys)


@pytest.mark.parametrize("kind", ["normal", "orthogonal"])
def test_other_keys_are_normal_of_variance_1(kind: str) -> None:
    keys = draw_keys(4, 24, 64, 0, kind)
    assert keys.shape == (4, 24, 64)
    assert keys.dtype == torch.float32
    assert float(keys.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(keys.var()) == pytest.approx(1.0, abs=0.05)
    kurtosis = keys.double().pow(4).mean() / keys.double().square().mean() ** 2
    assert float(kurtosis) == pytest.approx(3.0, abs=0.2)  # 1.8 were it uniform
    assert float(keys.max()) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_further_domain_moves_no_key(kind: str) -> None:
    keys = draw_keys(5, 3, 8, 7, kind)
    for n in range(1, 5):
        assert torch.equal(keys[:n], draw_keys(n, 3, 8, 7, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_and_every_seed_has_its_own_numbers(kind: str) -> None:
    keys = torch.cat([draw_keys(3, 2, 8, seed, kind) for seed in range(3)]).flatten(1)
    assert len(torch.unique(keys, dim=0)) == 9
    assert torch.equal(draw_keys(3, 2, 8, 1, kind), draw_keys(3, 2, 8, 1, kind))


@pytest.mark.parametrize(("n", "context_length", "width"), [(4, 24, 512), (12, 2, 8), (6, 2, 3)])
def test_orthogonal_keys_are_orthogonal_and_of_one_length(
    n: int, context_length: int, width: int
) -> None:
    keys = draw_keys(n, context_length, width, 3, "orthogonal").double().flatten(1)
    length = math.sqrt(context_length * width)
    torch.testing.assert_close(
        keys.norm(dim=1), torch.full((n,), length, dtype=torch.float64), rtol=1e-6, atol=0
    )
    cosine = keys @ keys.T / length**2
    torch.testing.assert_close(cosine, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-5)


def test_drawn_at_random_keys_are_not_orthogonal() -> None:
    keys = draw_keys(4, 2, 8, 3, "normal").flatten(1)
    cosine = torch.nn.functional.normalize(keys, dim=1) @ keys.T / keys.norm(dim=1)
    assert float((cosine - torch.eye(4)).abs().max()) > 0.05


def test_the_first_orthogonal_key_has_the_direction_of_the_normal_one() -> None:
    first, normal = (draw_keys(1, 3, 8, 5, kind).flatten() for kind in ("orthogonal", "normal"))
    cosine = torch.nn.functional.cosine_similarity(first, normal, dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-6)


def test_more_orthogonal_keys_than_dimensions_are_refused() -> None:
    assert draw_keys(6, 2, 3, 0, "orthogonal").shape == (6, 2, 3)
    with pytest.raises(
        ConfigError,
        match=r"prompt\.n_keys = 7: found orthogonal keys; expected at most 6, the values of a key"
        r"\. To do: lower prompt\.n_keys, or choose prompt\.keys=normal",
    ):
        draw_keys(7, 2, 3, 0, "orthogonal")
    assert draw_keys(7, 2, 3, 0, "normal").shape == (7, 2, 3)


@pytest.mark.parametrize("kind", ["uniform", "normal", "orthogonal"])
def test_new_keys_stand_behind_those_that_are_known(kind: str) -> None:
    known = draw_keys(2, 4, 8, 0, kind)
    keys = draw_keys(4, 4, 8, 1, kind, known)
    assert torch.equal(keys[:2], known)
    if kind == "orthogonal":  # also where another seed drew the known ones
        unit = torch.nn.functional.normalize(keys.flatten(1), dim=1)
        torch.testing.assert_close(unit @ unit.T, torch.eye(4), rtol=0, atol=1e-6)
    else:
        assert torch.equal(keys[2:], draw_keys(4, 4, 8, 1, kind)[2:])
    assert torch.equal(draw_keys(2, 4, 8, 1, kind, known), known)


# the context


def draw_context(n_classes: int, length: int, width: int, seed: int, **prompt: Any):
    backbone: Any = SimpleNamespace(text_tower=SimpleNamespace(width=width))
    config = PromptConfig(context_length=length, **prompt)
    return start_context(backbone, n_classes, config, seed)


def test_the_context_is_normal_of_std_0_02() -> None:
    context = draw_context(10, 24, 64, seed=0, class_specific=True)
    assert context.shape == (10, 24, 64)
    assert context.dtype == torch.float32
    assert float(context.std()) == pytest.approx(0.02, rel=0.02)
    assert float(context.mean()) == pytest.approx(0.0, abs=0.0005)
    assert not torch.equal(context[0], context[1])


def test_a_shared_context_has_no_class_axis() -> None:
    context = draw_context(10, 24, 64, seed=0, class_specific=False)
    assert context.shape == (24, 64)
    assert float(context.std()) == pytest.approx(0.02, rel=0.05)


def test_the_context_follows_from_the_seed() -> None:
    first = draw_context(2, 3, 4, 0)
    assert torch.equal(first, draw_context(2, 3, 4, 0))
    assert not torch.equal(first, draw_context(2, 3, 4, 1))


PHRASE = "a photo of a"


def embed_phrase(backbone: Backbone) -> torch.Tensor:
    ids = torch.tensor(backbone.tokenizer.encode(PHRASE))
    assert ids.shape == (4,)
    return backbone.text_tower.token_embedding(ids)


@pytest.mark.parametrize("class_specific", [True, False])
def test_a_context_can_end_with_a_phrase(tiny_backbone: Backbone, class_specific: bool) -> None:
    config = PromptConfig(context_length=6, class_specific=class_specific, start=PHRASE)
    found = start_context(tiny_backbone, 3, config, 0)
    assert found.shape == ((3, 6, 32) if class_specific else (6, 32))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(
        found[..., 2:, :], embed_phrase(tiny_backbone).expand(*found.shape[:-2], 4, 32)
    )
    # what stands before the phrase is what a random start has there
    random = PromptConfig(context_length=6, class_specific=class_specific)
    begun = start_context(tiny_backbone, 3, random, 0)
    assert torch.equal(found[..., :2, :], begun[..., :2, :])
    assert float((found - begun)[..., 2:, :].abs().min(-1).values.max()) > 0


def test_a_phrase_may_fill_the_context(tiny_backbone: Backbone) -> None:
    config = PromptConfig(context_length=4, class_specific=False, start=PHRASE)
    found = start_context(tiny_backbone, 3, config, 0)
    assert torch.equal(found, embed_phrase(tiny_backbone))
    found.zero_()  # a copy: the CLIP keeps its embeddings
    assert float(embed_phrase(tiny_backbone).abs().max()) > 0


@pytest.mark.parametrize(("start", "n_tokens"), [(PHRASE, 4), ("", 0)])
def test_a_phrase_that_does_not_fit_is_refused(
    tiny_backbone: Backbone, start: str, n_tokens: int
) -> None:
    config = PromptConfig(context_length=3, start=start)
    with pytest.raises(
        ConfigError,
        match=rf"prompt\.start = '{start}': found {n_tokens} tokens; expected 1 to "
        r"prompt\.context_length = 3\. To do: shorten the phrase, or raise prompt\.context_length",
    ):
        start_context(tiny_backbone, 3, config, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_leaves_torchs_own_generator_alone(kind: str) -> None:
    before = torch.random.get_rng_state()
    draw_keys(2, 3, 4, 0, kind)
    draw_context(2, 3, 4, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


# how far keys lie apart


@pytest.mark.parametrize("kind", ["uniform", "normal", "signs", "orthogonal"])
def test_keys_have_the_spread_that_is_asked_for(kind: str) -> None:
    centre = 0.5 if kind == "uniform" else 0.0
    for std in (0.1, 1.0, 2.0):
        keys = draw_keys(3, 24, 64, 0, kind, std=std)
        assert float((keys - centre).square().mean().sqrt()) == pytest.approx(std, rel=0.03)
        assert float(keys.mean()) == pytest.approx(centre, abs=0.05 * std)
        # the same draw, wider
        base = draw_keys(3, 24, 64, 0, kind)
        usual = 12**-0.5 if kind == "uniform" else 1.0
        torch.testing.assert_close((keys - centre) / std, (base - centre) / usual)
    assert torch.equal(draw_keys(3, 24, 64, 0, kind, std=usual), draw_keys(3, 24, 64, 0, kind))


def test_signs_have_two_values() -> None:
    keys = draw_keys(2, 24, 64, 0, "signs", std=1.5)
    assert set(keys.unique().tolist()) == {-1.5, 1.5}


def test_contexts_of_two_domains_correlate_as_far_as_their_keys_lie_together() -> None:
    context = torch.randn(24, 512, generator=torch.Generator().manual_seed(3))
    for kind, std, expected in (
        ("uniform", 0.0, 0.964),
        ("normal", 1.0, 0.5),
        ("normal", 2.0, 0.2),
    ):
        first, second = (context * (1 + key) for key in draw_keys(2, 24, 512, 0, kind, std=std))
        cosine = (first * second).sum() / (first.norm() * second.norm())
        assert float(cosine) == pytest.approx(expected, abs=0.03)
