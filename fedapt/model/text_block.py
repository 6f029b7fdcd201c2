"""One block of CLIP's text transformer, computed only where its result is needed.

The block computes the same numbers as OpenCLIP's block, with five savings:

- Tokens that come first and never change (SOS, or a context shared by all classes) are encoded
  once. The block gets their keys and values.
- The last block computes the pooled position only.
- If the weights separate two halves of the channels, as in `lite`, their zeros are not multiplied.
- The layers around QuickGELU absorb its factors.
- Matrix products may run in half precision. Residuals, LayerNorm and softmax stay in float32.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

_QUICK_GELU = 1.702


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of earlier tokens: float32 [n, heads, tokens, width of a head] each."""

    keys: Tensor
    values: Tensor

    def repeat(self, times: int) -> KeysValues:
        """Each row repeated `times` times."""
        if times == 1:
            return self
        return KeysValues(
            *(x.unsqueeze(1).expand(-1, times, -1, -1, -1).flatten(0, 1) for x in self.pair)
        )

    def before(self, later: KeysValues) -> KeysValues:
        """These tokens, then `later`; a single row is put before each of its rows."""
        n = len(later.keys)
        return KeysValues(
            *(
                torch.cat([x.expand(n, -1, -1, -1), y], dim=2)
                for x, y in zip(self.pair, later.pair, strict=True)
            )
        )

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        return self.keys, self.values


class TextBlock(nn.Module):
    """An OpenCLIP `ResidualAttentionBlock` that gets keys and values of earlier tokens.

    Source: open_clip.transformer.ResidualAttentionBlock.
    """

    def __init__(self, block: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        parts: Any = block
        self.ln_1, self.ln_2 = parts.ln_1, parts.ln_2
        self.ls_1, self.ls_2 = parts.ls_1, parts.ls_2
        self.attn, self.fc, self.proj = parts.attn, parts.mlp.c_fc, parts.mlp.c_proj
        self.activation = parts.mlp.gelu
        if type(self.activation).__name__ == "QuickGELU":
            self._absorb_quick_gelu()
        self.dtype = dtype
        self.is_halved = self._is_halved()
        if dtype != torch.float32:  # copies, so that the CLIP keeps its weights
            self.attn, self.fc, self.proj = (
                copy.deepcopy(part).to(dtype) for part in (self.attn, self.fc, self.proj)
            )

    def forward(
        self, x: Tensor, mask: Tensor | None, prefix: KeysValues | None, at: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Run the block.

        Args:
            x: float32 [n, tokens, W].
            mask: added to the attention scores, float32, broadcast to
                [n, heads, tokens, tokens of the prefix + tokens]; of the positions `at` if
                given. None if every token sees every other.
            prefix: prefix of tokens before these.
            at: int64 [n], the only required position of each row; None for all positions.

        Returns:
            float32 [n, tokens or 1, W], and these tokens' keys and values.
        """
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        y = self.ln_1(x)
        if at is None:
            q, k, v = self._linear(y, weight, bias, layers=3).chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            k, v = self._linear(y, weight[width:], bias[width:], layers=2).chunk(2, dim=-1)
            rows = torch.arange(len(x), device=x.device)
            x, y = x[rows, at].unsqueeze(1), y[rows, at].unsqueeze(1)
            q = self._linear(y, weight[:width], bias[:width])
        own = KeysValues(self._split_heads(k), self._split_heads(v))
        seen = own if prefix is None else prefix.before(own)
        mixed = scaled_dot_product_attention(
            self._split_heads(q), seen.keys, seen.values, attn_mask=mask
        )
        out = self.attn.out_proj
        x = x + self.ls_1(self._linear(mixed.transpose(1, 2).flatten(2), out.weight, out.bias))
        hidden = self.activation(self._linear(self.ln_2(x), self.fc.weight, self.fc.bias))
        return x + self.ls_2(self._linear(hidden, self.proj.weight, self.proj.bias)), own

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor, layers: int = 1) -> Tensor:
        """Product and bias of one layer, or of several stacked layers with the same input."""
        y = x.to(self.dtype)
        if not self.is_halved:
            return linear(y, weight, bias).to(x.dtype)
        halves, biases = y.chunk(2, dim=-1), bias.chunk(2 * layers)
        blocks = _quarters(weight, layers)
        outputs = [linear(halves[i % 2], blocks[i], biases[i]) for i in range(2 * layers)]
        return torch.cat(outputs, dim=-1).to(x.dtype)

    def _absorb_quick_gelu(self) -> None:
        """The layers before and behind x sigmoid(a x) = silu(a x) / a take a and 1 / a.

        One pass over the widest tensors remains of three, and one of five in the gradient.
        The layers are copies, so that the CLIP keeps its weights.
        """
        self.fc, self.proj = copy.deepcopy(self.fc), copy.deepcopy(self.proj)
        with torch.no_grad():
            self.fc.weight.mul_(_QUICK_GELU)
            self.fc.bias.mul_(_QUICK_GELU)
            self.proj.weight.div_(_QUICK_GELU)
        self.activation = nn.SiLU()

    def _is_halved(self) -> bool:
        """Whether the frozen weights connect no channel to the other half of the channels."""
        attn = self.attn
        single = (attn.out_proj.weight, self.fc.weight, self.proj.weight)
        weights = [(attn.in_proj_weight, 3), *((weight, 1) for weight in single)]
        across = (block for w, layers in weights for block in _quarters(w, layers, off=1))
        return attn.num_heads % 2 == 0 and not any(bool(block.any()) for block in across)

    def _split_heads(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        heads: int = self.attn.num_heads
        # not -1, because there may be no rows
        return x.view(n, length, heads, width // heads).transpose(1, 2)


def _quarters(weight: Tensor, layers: int, off: int = 0) -> list[Tensor]:
    """Two of the four quarters of each of `layers` matrices: on the diagonal, or `off` it."""
    rows = weight.chunk(2 * layers)
    return [half.chunk(2, dim=1)[(i + off) % 2] for i, half in enumerate(rows)]
