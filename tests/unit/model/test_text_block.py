"""A block of the text transformer against OpenCLIP's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedapt.model.backbone import hash_tensors
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.text_block import KeysValues, TextBlock

W, HEADS, LENGTH, N = 16, 2, 7, 3
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.5},
    "quick gelu": {"act_layer": "QuickGELU"},
    "halves apart": {"halved": True},
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def keep_apart(weight: Tensor) -> None:
    height, width = weight.shape[0] // 2, weight.shape[1] // 2
    weight.data[:height, width:] = 0
    weight.data[height:, :width] = 0


def build(act_layer: str = "", halved: bool = False, **options: Any) -> nn.Module:
    module = import_open_clip().transformer
    if act_layer:
        options["act_layer"] = getattr(module, act_layer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block: nn.Module = module.ResidualAttentionBlock(W, HEADS, **options)
        for parameter in block.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    if halved:
        attn, mlp = block.attn, block.mlp
        for part in (attn.out_proj.weight, mlp.c_fc.weight, mlp.c_proj.weight):
            keep_apart(part)
        for part in attn.in_proj_weight.chunk(3):
            keep_apart(part)
    return block.requires_grad_(False).eval()


MASK = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
X = draw(N, LENGTH, W)
AT = torch.tensor([2, 6, 4])
ROWS = torch.arange(N)


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def block(request: pytest.FixtureRequest) -> nn.Module:
    return build(**request.param)


def close(found: Tensor, expected: Tensor, atol: float = 2e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_all_positions_are_open_clips(block: nn.Module) -> None:
    found, own = TextBlock(block)(X, MASK, None)
    close(found, block(X, attn_mask=MASK))
    assert own.keys.shape == own.values.shape == (N, HEADS, LENGTH, W // HEADS)
    without_mask, _ = TextBlock(block)(X, torch.zeros_like(MASK), None)
    assert float((without_mask - found).abs().max()) > 1e-2


def test_one_position_is_that_of_all(block: nn.Module) -> None:
    found, own = TextBlock(block)(X, MASK[AT][:, None, None], None, at=AT)
    assert found.shape == (N, 1, W)
    close(found.squeeze(1), block(X, attn_mask=MASK)[ROWS, AT])
    _, expected = TextBlock(block)(X, MASK, None)
    close(own.keys, expected.keys)
    close(own.values, expected.values)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_behind_a_prefix_nothing_changes(block: nn.Module, cut: int) -> None:
    ours, expected = TextBlock(block), block(X, attn_mask=MASK)
    start, before = ours(X[:, :cut], MASK[:cut, :cut], None)
    close(start, expected[:, :cut])
    found, own = ours(X[:, cut:], MASK[cut:], before)
    close(found, expected[:, cut:])
    assert own.keys.shape[2] == LENGTH - cut  # of these tokens alone
    at = (AT - cut).clamp(min=0)
    found, _ = ours(X[:, cut:], MASK[cut:][at][:, None, None], before, at=at)
    close(found.squeeze(1), expected[ROWS, at + cut])


def test_a_prefix_of_one_row_stands_before_all(block: nn.Module) -> None:
    x = torch.cat([X[:1, :2].expand(N, -1, -1), X[:, 2:]], dim=1)
    ours, expected = TextBlock(block), block(x, attn_mask=MASK)
    _, before = ours(x[:1, :2], MASK[:2, :2], None)
    found, _ = ours(x[:, 2:], MASK[2:], before)
    close(found, expected[:, 2:])


def test_a_prefix_repeated_stands_before_each_of_its_rows(block: nn.Module) -> None:
    """As for the classes that follow one context: rows 0, 0, 1, 1, 2, 2."""
    x = torch.cat([X[:, :3].repeat_interleave(2, dim=0), draw(2 * N, 4, W, seed=1)], dim=1)
    ours, expected = TextBlock(block), block(x, attn_mask=MASK)
    _, before = ours(X[:, :3], MASK[:3, :3], None)
    found, _ = ours(x[:, 3:], MASK[3:], before.repeat(2))
    close(found, expected[:, 3:])


def test_keys_and_values_are_put_in_order() -> None:
    first, later = (KeysValues(draw(2, 1, n, 3, seed=n), draw(2, 1, n, 3, seed=-n)) for n in (2, 4))
    both = first.before(later)
    assert torch.equal(both.keys, torch.cat([first.keys, later.keys], dim=2))
    assert torch.equal(both.values, torch.cat([first.values, later.values], dim=2))
    twice = first.repeat(2)
    assert torch.equal(twice.keys, first.keys[[0, 0, 1, 1]])
    assert torch.equal(twice.values, first.values[[0, 0, 1, 1]])
    assert first.repeat(1) is first
    assert first.pair == (first.keys, first.values)


def test_the_gradient_is_open_clips(block: nn.Module) -> None:
    theirs, ours = X.clone().requires_grad_(), X.clone().requires_grad_()
    (block(theirs, attn_mask=MASK)[ROWS, AT] * draw(N, W, seed=2)).sum().backward()
    start, before = TextBlock(block)(ours[:, :2], MASK[:2, :2], None)
    at = AT - 2
    found, _ = TextBlock(block)(ours[:, 2:], MASK[2:][at][:, None, None], before, at=at)
    (found.squeeze(1) * draw(N, W, seed=2)).sum().backward()
    assert theirs.grad is not None
    assert ours.grad is not None
    close(ours.grad, theirs.grad, atol=1e-5)
    assert float(ours.grad[0, 3:].abs().max()) == 0  # behind the position
    assert start.shape == (N, 2, W)


def test_no_rows_give_none(block: nn.Module) -> None:
    found, _ = TextBlock(block)(X[:0], MASK, None)
    assert found.shape == (0, LENGTH, W)
    found, _ = TextBlock(block)(X[:0], MASK[AT[:0]][:, None, None], None, at=AT[:0])
    assert found.shape == (0, 1, W)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_of_the_matrix_products_alone(
    block: nn.Module, dtype: torch.dtype
) -> None:
    before = hash_tensors(block.state_dict().items())
    half = TextBlock(block, dtype)
    found, own = half(X, MASK, None)
    expected = block(X, attn_mask=MASK)
    assert found.dtype == own.keys.dtype == own.values.dtype == torch.float32
    error = float((found - expected).abs().max() / expected.abs().max())
    assert 0 < error < (2e-2 if dtype == torch.bfloat16 else 2e-3)
    # the CLIP's own weights are neither changed nor used in half precision
    assert hash_tensors(block.state_dict().items()) == before
    assert {p.dtype for p in block.parameters()} == {torch.float32}
    assert half.attn.in_proj_weight.dtype == half.fc.weight.dtype == half.proj.weight.dtype == dtype
    assert half.ln_1.weight.dtype == half.ln_2.weight.dtype == torch.float32
    # a residual stream far from 0 keeps small differences, which half precision would round away
    large = X + 1000
    moved = half(large + 1e-2, MASK, None)[0] - half(large, MASK, None)[0]
    close(moved, torch.full_like(moved, 1e-2), atol=5e-3)


def test_float32_shares_the_weights(block: nn.Module) -> None:
    ours = TextBlock(block)
    parts: Any = block
    assert ours.attn is parts.attn
    assert (ours.fc is parts.mlp.c_fc) == (not isinstance(ours.activation, nn.SiLU))
    changed: Any = copy.deepcopy(block)
    changed.mlp.c_proj.weight.data += 1
    assert float((TextBlock(changed)(X, MASK, None)[0] - ours(X, MASK, None)[0]).abs().max()) > 1e-2


def test_quick_gelu_leaves_its_factors_to_copies_of_the_layers() -> None:
    block = build(act_layer="QuickGELU")
    before = hash_tensors(block.state_dict().items())
    ours = TextBlock(block)
    assert isinstance(ours.activation, nn.SiLU)
    assert hash_tensors(block.state_dict().items()) == before
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(ours(x, MASK, None)[0].square().sum(), x)
    (expected,) = torch.autograd.grad(block(x, attn_mask=MASK).square().sum(), x)
    close(found, expected, 1e-5)
    for kind in ("plain", "layer scale"):
        assert not isinstance(TextBlock(build(**KINDS[kind])).activation, nn.SiLU)


def test_halves_are_told_from_the_weights() -> None:
    assert TextBlock(build(halved=True)).is_halved
    assert not TextBlock(build()).is_halved
    for name in ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight"):
        block = build(halved=True)
        block.get_parameter(name).data[-1, 0] = 1e-3  # the last row of the last layer
        assert not TextBlock(block).is_halved, name


def test_halves_apart_have_the_gradients_of_the_whole() -> None:
    ours, x = TextBlock(build(halved=True)), X.clone().requires_grad_()
    (found,) = torch.autograd.grad(ours(x, MASK, None)[0].square().sum(), x)
    ours.is_halved = False
    (expected,) = torch.autograd.grad(ours(x, MASK, None)[0].square().sum(), x)
    close(found, expected, 1e-5)
