"""An image tower rewritten for its trace: the same numbers from fewer operators.

torch traces all operations of a module, and no backend needs some of them. `MultiheadAttention`
transposes the batch to the front and back in every block. Global pooling becomes index arithmetic.
A few networks carry training branches that inference can merge. If only the class token is read at
the end, the last block still computes all other tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from fedapt.model.open_clip_import import import_open_clip


def rewrite_for_tracing(module: nn.Module) -> None:
    """Replace, in place, modules that trace to needless operators; evaluation mode only."""
    open_clip = import_open_clip()  # makes timm importable
    from timm.utils import reparameterize_model

    # MobileOne's and FastViT's parallel convolutions become the one that they add up to
    reparameterize_model(module, inplace=True)
    for tower in module.modules():
        if type(tower) is open_clip.transformer.VisionTransformer:
            _shorten_last_block(tower)
    _replace_modules(module)


def _shorten_last_block(tower: Any) -> None:
    """Let the last block of an OpenCLIP ViT compute the class token alone, if only that is read.

    The block is 1/12 of ViT-B. The keys and values of the other tokens, which are still needed,
    are a sixth of the block.
    """
    block = tower.transformer.resblocks[-1]
    is_plain = type(block) is import_open_clip().transformer.ResidualAttentionBlock
    reads_class_token = tower.pool_type == "tok" and tower.attn_pool is None
    if is_plain and reads_class_token and not tower.output_tokens:
        tower.transformer.resblocks[-1] = _ClassTokenBlock(block)


class _ClassTokenBlock(nn.Module):
    """OpenCLIP's `ResidualAttentionBlock` for the first token: [n, L, W] -> [n, 1, W]."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ls_1 = block.ln_1, block.attn, block.ls_1
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2

    def forward(self, x: Tensor, attn_mask: None = None) -> Tensor:
        tokens = self.ln_1(x)
        mixed = self.attn(tokens[:, :1], tokens, tokens, need_weights=False)[0]
        y: Tensor = x[:, :1] + self.ls_1(mixed)
        z: Tensor = y + self.ls_2(self.mlp(self.ln_2(y)))
        return z


def _replace_modules(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
            setattr(module, name, _GlobalMean())
        elif type(child) is nn.MultiheadAttention and child.batch_first:
            setattr(module, name, _Attention(child))
        else:
            _replace_modules(child)


class _GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class _Attention(nn.Module):
    """`nn.MultiheadAttention`, batch first, with a product of its own for q, k and v.

    Three products instead of one that has to be split: no copies, and the shape that TensorRT and
    ONNX Runtime look for when they fuse attention.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.n_heads = attention.num_heads
        if attention.in_proj_weight is not None:
            weights = attention.in_proj_weight.chunk(3)
        else:
            weights = (
                attention.q_proj_weight,
                attention.k_proj_weight,
                attention.v_proj_weight,
            )
        none = (None, None, None)
        biases = none if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            self.register_buffer(f"{name}_weight", weight.detach())
            self.register_buffer(f"{name}_bias", None if bias is None else bias.detach())
        self.out_proj = attention.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        q, k, v = (self._project(n, x) for n, x in zip("qkv", (query, key, value), strict=True))
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out, None

    def _project(self, name: str, x: Tensor) -> Tensor:
        y = linear(x, self.get_buffer(f"{name}_weight"), getattr(self, f"{name}_bias"))
        n, length, width = y.shape
        return y.view(n, length, self.n_heads, width // self.n_heads).transpose(1, 2)
