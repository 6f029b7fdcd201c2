"""What a tower is rewritten to before its trace computes the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedapt.model.backbone import Backbone
from fedapt.model.open_clip_import import import_open_clip
from fedapt.onnx import tower
from fedapt.onnx.rewrite import rewrite_for_tracing


@pytest.fixture(autouse=True, scope="module")
def importable_timm() -> None:
    import_open_clip()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(0.5 * torch.rand(tensor.shape, generator=generator) + 0.1)


class Block(nn.Module):
    """An attention that stands in a module, as in a tower."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"attn": attention})

    def forward(self, *arguments: Tensor, **options: Any) -> Tensor:
        found: Tensor = self.inner["attn"](*arguments, **options)[0]
        return found


def build(width: int = 12, **options: Any) -> Block:
    attention = nn.MultiheadAttention(width, 3, **({"batch_first": True} | options))
    for i, parameter in enumerate(attention.parameters()):
        parameter.data = 0.4 * draw(*parameter.shape, seed=i)
    return Block(attention).requires_grad_(False).eval()


def assert_replaced(block: Block) -> None:
    assert not any(type(m) is nn.MultiheadAttention for m in block.modules())


@pytest.mark.parametrize("bias", [True, False])
def test_attention_gives_the_same_numbers(bias: bool) -> None:
    block = build(bias=bias)
    x, y, z = (draw(2, 7, 12, seed=s) for s in (11, 12, 13))
    expected = block(x, y, z, need_weights=False)
    itself = block(x, x, x, need_weights=False)
    rewrite_for_tracing(block)
    assert_replaced(block)
    torch.testing.assert_close(block(x, y, z, need_weights=False), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(block(x, x, x), itself, rtol=0, atol=1e-5)
    # query, key and value are told apart
    for others in ((y, x, z), (x, z, y)):
        assert float((block(*others) - expected).abs().max()) > 1e-2


def test_attention_with_weights_of_their_own_for_q_k_and_v() -> None:
    block = build(kdim=5, vdim=9)
    assert block.inner["attn"].in_proj_weight is None
    arguments = draw(2, 4, 12, seed=1), draw(2, 6, 5, seed=2), draw(2, 6, 9, seed=3)
    expected = block(*arguments)
    rewrite_for_tracing(block)
    assert_replaced(block)
    torch.testing.assert_close(block(*arguments), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "soft"])
def test_attention_under_a_mask(kind: str) -> None:
    block = build()
    mask = torch.full((6, 6), float("-inf")).triu(1) if kind == "causal" else draw(6, 6, seed=4)
    x = draw(2, 6, 12)
    expected, unmasked = block(x, x, x, attn_mask=mask), block(x, x, x)
    rewrite_for_tracing(block)
    torch.testing.assert_close(block(x, x, x, attn_mask=mask), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(block(x, x, x), unmasked, rtol=0, atol=1e-5)
    assert float((expected - unmasked).abs().max()) > 1e-2


def test_the_trace_shares_weights_and_changes_none(tiny_backbone: Backbone) -> None:
    weights = dict(tiny_backbone.clip.named_parameters())
    before = {name: value.detach().clone() for name, value in weights.items()}
    seen: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        seen.append(module)
        rewrite_for_tracing(module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tower, "rewrite_for_tracing", look)
        tower.image_tower_to_onnx(tiny_backbone)
    memory = {value.untyped_storage().data_ptr() for value in weights.values()}
    split = [t for name, t in seen[0].named_buffers() if name.endswith(("q_weight", "k_bias"))]
    assert split
    shared = [*seen[0].parameters(), *split]
    assert all(tensor.untyped_storage().data_ptr() in memory for tensor in shared)
    after = dict(tiny_backbone.clip.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_attention_that_is_not_batch_first_or_of_another_class_stays() -> None:
    class Other(nn.MultiheadAttention):
        """May compute something else."""

    kept = nn.ModuleList([nn.MultiheadAttention(4, 2), Other(4, 2, batch_first=True)])
    before = list(kept)
    rewrite_for_tracing(kept)
    assert list(kept) == before


@pytest.mark.parametrize("size", [1, (1, 1)])
def test_global_pooling_becomes_a_mean(size: Any) -> None:
    module = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(size)))
    x = draw(2, 3, 5, 4)
    expected = module(x)
    rewrite_for_tracing(module)
    assert not any(isinstance(m, nn.AdaptiveAvgPool2d) for m in module.modules())
    found = module(x)
    assert found.shape == (2, 3, 1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, (1, 2), (None, 1)])
def test_pooling_to_more_than_one_value_stays(size: Any) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(size))
    x = draw(2, 3, 4, 4)
    expected = module(x)
    rewrite_for_tracing(module)
    assert isinstance(module[0], nn.AdaptiveAvgPool2d)
    assert torch.equal(module(x), expected)


def test_the_branches_of_a_fastvit_are_merged() -> None:
    import timm

    tower = timm.create_model(
        "fastvit_t8", layers=(1, 1, 1, 1), embed_dims=(32, 64, 128, 256), num_classes=8
    ).eval()
    randomise(tower)
    with torch.no_grad():  # the numbers stay near one through every layer
        for module in tower.modules():
            if isinstance(module, nn.Conv2d):
                module.weight /= module.weight[0].numel() * 0.3
    x = draw(2, 3, 64, 64)
    n_convolutions = sum(isinstance(m, nn.Conv2d) for m in tower.modules())
    n_norms = sum(isinstance(m, nn.BatchNorm2d) for m in tower.modules())
    with torch.no_grad():
        expected = tower(x)
        rewrite_for_tracing(tower)
        found = tower(x)
    assert sum(isinstance(m, nn.Conv2d) for m in tower.modules()) < n_convolutions
    assert sum(isinstance(m, nn.BatchNorm2d) for m in tower.modules()) < n_norms / 4
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def build_vit(pool_type: str = "tok", **options: Any) -> Any:
    transformer: Any = import_open_clip().transformer
    torch.manual_seed(3)
    tower = transformer.VisionTransformer(
        image_size=32,
        patch_size=8,
        width=24,
        layers=3,
        heads=3,
        mlp_ratio=2.0,
        output_dim=16,
        pool_type=pool_type,
        ls_init_value=0.5,
        **options,
    )
    randomise(tower.transformer.resblocks[-1].ls_1)
    return tower.double().eval().requires_grad_(False)


def count_tokens(tower: Any) -> list[int]:
    """How many tokens each block's MLP computes."""
    seen: list[int] = []
    for block in tower.transformer.resblocks:
        block.mlp.register_forward_hook(lambda m, x, y: seen.append(y.shape[1]))
    tower(draw(1, 3, 32, 32).double())
    return seen


def assert_blocks(options: dict[str, Any], n_tokens: list[int]) -> None:
    """The rewritten tower computes the same features, each block from so many tokens."""
    tower = build_vit(**options)
    x = draw(5, 3, 32, 32).double()
    expected = tower(x)
    rewrite_for_tracing(tower)
    assert count_tokens(tower) == n_tokens
    torch.testing.assert_close(tower(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"final_ln_after_pool": True}, {"no_ln_pre": True}])
def test_the_last_block_of_a_vit_computes_the_class_token_alone(options: dict[str, Any]) -> None:
    assert_blocks(options, [17, 17, 1])


@pytest.mark.parametrize(
    "options",
    [
        {"pool_type": "avg"},
        {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 4},
        {"output_tokens": True},
    ],
)
def test_where_other_tokens_are_read_too_the_last_block_stays(options: dict[str, Any]) -> None:
    assert_blocks(options, [17, 17, 17])
