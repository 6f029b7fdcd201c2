"""An image tower rewritten for its trace: the same numbers from fewer operators.

torch traces what its modules do, and some do much that no backend needs: `MultiheadAttention` turns
the batch to the front and back again for every block, global pooling becomes index arithmetic, and
a few networks carry branches that training needed and inference can add up.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from fedapt.model.open_clip_import import import_open_clip


def rewrite_for_tracing(module: nn.Module) -> None:
    """Replace, in place, what would leave needless operators behind; evaluation mode only."""
    import_open_clip()  # which makes timm importable
    from timm.models import reparameterize_model

    # MobileOne's and FastViT's parallel convolutions become the one that they add up to
    reparameterize_model(module, inplace=True)
    _replace_modules(module)


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
            self.register_buffer(f"{name}_weight", weight.detach().clone())
            self.register_buffer(f"{name}_bias", None if bias is None else bias.detach().clone())
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
