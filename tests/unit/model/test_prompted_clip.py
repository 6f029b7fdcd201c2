"""The text side and the server's model against plain loops and OpenCLIP itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedapt.core.errors import DataError
from fedapt.model.adaptive_network import domain_weights
from fedapt.model.backbone import Backbone
from fedapt.model.head import gram_matrices, mix_banks
from fedapt.model.prompted_clip import (
    GlobalModel,
    prompted_text,
    zero_shot_features,
)

NAMES = ("red square", "mug", "pair of headphones")
M, W, D, N = 4, 32, 32, 3
SCALE = 10.0


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["a context per class", "a shared context"])
def model(request: pytest.FixtureRequest, tiny_backbone: Backbone) -> GlobalModel:
    shape = (len(NAMES), M, W) if request.param == "a context per class" else (M, W)
    return GlobalModel(
        text=prompted_text(tiny_backbone, NAMES, M),
        context=0.05 * draw(*shape, seed=1),
        adaptive_network=draw(N, D, seed=2),
        keys=3 * draw(N, M, W, seed=3).abs(),  # large, so that domains differ
        temperature=0.01,
        logit_scale=SCALE,
    )


@pytest.fixture(scope="module")
def soft_model(model: GlobalModel) -> GlobalModel:
    return dataclasses.replace(model, temperature=2.0)


FEATURES = 5 * draw(7, D, seed=4)


def text_of(model: GlobalModel, weights: Tensor) -> Tensor:
    """t(w) with the prompt written out: V (1 + w_1 E_1 + w_2 E_2 + w_3 E_3)."""
    factor = torch.ones(M, W)
    for weight, key in zip(weights, model.keys, strict=True):
        factor = factor + weight * key
    return model.text(model.context * factor)


# the text side


def test_with_the_embedding_of_x_the_text_is_open_clips(tiny_backbone: Backbone) -> None:
    x = tiny_backbone.text_tower.token_embedding(torch.tensor(tiny_backbone.tokenizer.encode("X")))
    ids = tiny_backbone.tokenizer([f"X X X X {name}." for name in NAMES])
    expected = tiny_backbone.clip.encode_text(ids, normalize=True)
    text = prompted_text(tiny_backbone, NAMES, M)
    shared = text(x.expand(M, W))
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(text(x.expand(3, M, W)), expected, rtol=0, atol=1e-6)
    assert float((text(-x.expand(M, W)) - expected).abs().max()) > 1e-3  # the context matters


def test_text_features_have_length_one(model: GlobalModel) -> None:
    assert model.text(model.context).shape == (3, D)
    torch.testing.assert_close(model.text(model.context).norm(dim=-1), torch.ones(3))


def test_a_class_has_its_own_context(tiny_backbone: Backbone) -> None:
    text = prompted_text(tiny_backbone, NAMES, M)
    context = draw(3, M, W)
    changed = context.clone()
    changed[1] *= -1
    before, after = text(context), text(changed)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
    assert float((after[1] - before[1]).abs().max()) > 1e-3


def test_a_batch_of_contexts_is_one_context_at_a_time(tiny_backbone: Backbone) -> None:
    text = prompted_text(tiny_backbone, NAMES, M)
    batch = draw(5, 3, M, W)
    together = text(batch)
    assert together.shape == (5, 3, D)
    alone = torch.stack([text(context) for context in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    shared = text(batch[:, :1])
    alone = torch.stack([text(context) for context in batch[:, 0]])
    torch.testing.assert_close(shared, alone, rtol=0, atol=1e-6)


def test_a_shared_context_is_that_of_every_class(tiny_backbone: Backbone) -> None:
    text = prompted_text(tiny_backbone, NAMES, M)
    context = draw(M, W, seed=11)
    repeated = context.expand(3, M, W)
    torch.testing.assert_close(text(context), text(repeated), rtol=0, atol=1e-6)
    batch = draw(5, 1, M, W, seed=12)
    found = text(batch)
    assert found.shape == (5, 3, D)
    torch.testing.assert_close(found, text(batch.expand(5, 3, M, W)), rtol=0, atol=1e-6)


def test_the_gradient_of_a_shared_context_is_the_sum_over_the_classes(
    tiny_backbone: Backbone,
) -> None:
    text = prompted_text(tiny_backbone, NAMES, M)
    target = draw(3, D, seed=13)
    shared = draw(M, W, seed=11).requires_grad_()
    own = shared.detach().expand(3, M, W).clone().requires_grad_()
    for context in (shared, own):
        (text(context) * target).sum().backward()
    largest = float(own.grad.abs().max())
    assert largest > 1e-3
    torch.testing.assert_close(shared.grad, own.grad.sum(0), rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("shape", [(M, W), (1, M, W), (2, 1, M, W)])
def test_one_class_may_have_any_shape_of_context(
    tiny_backbone: Backbone, shape: tuple[int, ...]
) -> None:
    text, all_text = (prompted_text(tiny_backbone, names, M) for names in (NAMES[1:2], NAMES))
    context = draw(*shape, seed=14)
    expected = [all_text(c.expand(3, M, W))[1] for c in context.reshape(-1, M, W)]
    found = text(context)
    assert found.shape == ((2, 1, D) if len(shape) == 4 else (1, D))
    torch.testing.assert_close(found.reshape(-1, D), torch.stack(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(M, W), (3, M, W)])
def test_the_text_in_bfloat16_is_close_to_float32(
    tiny_backbone: Backbone, shape: tuple[int, ...]
) -> None:
    before = tiny_backbone.text_tower.blocks[0].fc.weight.clone()
    text = prompted_text(tiny_backbone, NAMES, M)
    half = prompted_text(tiny_backbone, NAMES, M, torch.bfloat16)
    context = 0.05 * draw(*shape, seed=15)
    expected, found = text(context), half(context)
    assert found.dtype == torch.float32
    gap = float((found - expected).abs().max())
    assert 1e-6 < gap < 2e-2
    assert float((found * expected).sum(-1).min()) > 0.999
    assert torch.equal(tiny_backbone.text_tower.blocks[0].fc.weight, before)
    assert tiny_backbone.text_tower_in(torch.float32) is tiny_backbone.text_tower


def test_only_the_context_has_a_gradient(tiny_backbone: Backbone) -> None:
    text = prompted_text(tiny_backbone, NAMES, M)
    context = draw(3, M, W).requires_grad_()
    text(context).sum().backward()
    assert float(context.grad.abs().max()) > 0
    assert [p for p in text.parameters() if p.requires_grad] == []


def test_a_name_that_does_not_fit_is_refused(tiny_backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"class 'mug': found a prompt of 78 tokens; .*at most 77"):
        prompted_text(tiny_backbone, ("mug",), 74)
    assert prompted_text(tiny_backbone, ("mug",), 73).n_classes == 1


def test_zero_shot_text_is_open_clips(tiny_backbone: Backbone) -> None:
    ids = tiny_backbone.tokenizer([f"a photo of a {name}." for name in NAMES])
    expected = tiny_backbone.clip.encode_text(ids, normalize=True)
    found = zero_shot_features(tiny_backbone, NAMES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# mixing banks


def unit(*shape: int, seed: int) -> Tensor:
    return normalize(draw(*shape, seed=seed), dim=-1)


BANKS = unit(N, 3, D, seed=5)


def test_gram_matrices_are_the_products_of_the_banks() -> None:
    gram = gram_matrices(BANKS)
    assert gram.shape == (3, N, N)
    for c in range(3):
        torch.testing.assert_close(gram[c], BANKS[:, c] @ BANKS[:, c].T)


def test_one_hot_weights_give_the_cosine_to_that_bank() -> None:
    features, weights = unit(N, D, seed=6), torch.eye(N)
    found = mix_banks(features, weights, BANKS, gram_matrices(BANKS))
    expected = torch.stack([BANKS[n] @ features[n] for n in range(N)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_soft_weights_give_the_cosine_to_the_renormalised_mixture() -> None:
    features, weights = unit(20, D, seed=6), draw(20, N, seed=7).softmax(-1)
    found = mix_banks(features, weights, BANKS, gram_matrices(BANKS))
    for f, w, row in zip(features, weights, found, strict=True):
        mixed = normalize(w[0] * BANKS[0] + w[1] * BANKS[1] + w[2] * BANKS[2], dim=-1)
        torch.testing.assert_close(row, mixed @ f, rtol=0, atol=1e-5)
    unnormalised = torch.einsum("bn,ncd,bd->bc", weights, BANKS, features)
    assert float((found - unnormalised).abs().max()) > 0.05  # the division matters


def test_banks_that_cancel_out_give_zero_and_no_nan() -> None:
    banks = torch.stack([BANKS[0], -BANKS[0]])
    features = unit(2, D, seed=6)
    found = mix_banks(features, torch.full((2, 2), 0.5), banks, gram_matrices(banks))
    assert bool(found.isfinite().all())
    assert float(found.abs().max()) < 1e-3


# the server's model


def test_weights_are_those_of_q(model: GlobalModel, soft_model: GlobalModel) -> None:
    scores = torch.stack([model.adaptive_network @ f for f in FEATURES])
    for m in (model, soft_model):
        torch.testing.assert_close(m.weights(FEATURES), domain_weights(scores, m.temperature))
    assert float(soft_model.weights(FEATURES).amax(-1).mean()) < 0.9


def test_text_banks_are_the_text_under_each_key(model: GlobalModel) -> None:
    banks = model.text_banks
    assert banks.shape == (N, 3, D)
    for n, one_hot in enumerate(torch.eye(N)):
        torch.testing.assert_close(banks[n], text_of(model, one_hot), rtol=0, atol=1e-6)
    assert float((banks[0] - banks[1]).abs().max()) > 1e-2


def test_exact_logits_are_a_plain_loop_over_images(
    model: GlobalModel, soft_model: GlobalModel
) -> None:
    for m in (model, soft_model):
        rows = []
        for f in FEATURES:
            w = domain_weights(m.adaptive_network @ f, m.temperature)
            rows.append(SCALE * text_of(m, w) @ (f / f.norm()))
        torch.testing.assert_close(m.exact_logits(FEATURES), torch.stack(rows), rtol=0, atol=1e-4)


@pytest.mark.parametrize("max_prompts", [1, 3, 7, 9, 10_000])
def test_exact_logits_do_not_depend_on_how_many_run_at_once(
    soft_model: GlobalModel, max_prompts: int
) -> None:
    expected = soft_model.exact_logits(FEATURES)
    found = soft_model.exact_logits(FEATURES, max_prompts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_with_one_hot_weights_the_banks_are_exact(model: GlobalModel) -> None:
    weights = model.weights(FEATURES)
    clear = FEATURES[weights.amax(-1) > 1 - 1e-6]
    assert len(clear) >= 4
    found = model.head.logits(clear)
    torch.testing.assert_close(found, model.exact_logits(clear), rtol=0, atol=1e-4)


def test_with_soft_weights_they_are_an_approximation(soft_model: GlobalModel) -> None:
    found = soft_model.head.logits(FEATURES)
    assert float((found - soft_model.exact_logits(FEATURES)).abs().max()) > 1e-3


def test_logits_do_not_depend_on_the_length_of_a_feature(model: GlobalModel) -> None:
    torch.testing.assert_close(
        model.head.logits(FEATURES * 7), model.head.logits(FEATURES), rtol=0, atol=1e-4
    )


def test_no_images_give_no_logits(model: GlobalModel) -> None:
    none = torch.empty(0, D)
    assert model.head.logits(none).shape == (0, 3)
    assert model.exact_logits(none).shape == (0, 3)


def test_one_domain_is_its_own_bank(model: GlobalModel) -> None:
    single = dataclasses.replace(
        model, keys=model.keys[:1], adaptive_network=model.adaptive_network[:1]
    )
    assert single.n_domains == 1
    expected = SCALE * normalize(FEATURES, dim=-1) @ text_of(model, torch.tensor([1.0, 0, 0])).T
    torch.testing.assert_close(single.exact_logits(FEATURES), expected, rtol=0, atol=1e-4)
    found = single.head.logits(FEATURES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
