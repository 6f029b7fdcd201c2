"""The text tower of an OpenCLIP model, run on embeddings instead of token ids.

Prompt tuning feeds vectors that no token id has, so the tower is entered behind its embedding
table. The tower is causal and pools at EOS, hence a sequence cut behind the longest EOS gives the
same features for a fraction of the work; towers for which this does not hold are refused. For the
same reason tokens that stand before all others can be encoded once, as a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedapt.core.errors import ModelNotSupported
from fedapt.model.text_block import KeysValues, TextBlock

_POOLS_AT_EOS = ("argmax", "eos")
_EOS = 49407  # the last token of CLIP's vocabulary
_BLOCK = "ResidualAttentionBlock"


@dataclass(frozen=True)
class Prefix:
    """Tokens before all others, encoded once: keys and values for each block."""

    blocks: tuple[KeysValues, ...]

    def __len__(self) -> int:
        return self.blocks[0].keys.shape[2]

    def repeat(self, times: int) -> Prefix:
        """Each row `times` times in a row, as for the classes that follow one context."""
        return Prefix(tuple(block.repeat(times) for block in self.blocks))


class TextTower(nn.Module):
    """Embeddings float32 [n, length, width] and EOS positions int64 [n] -> features [n, joint].

    Args:
        clip: an OpenCLIP `CLIP` or `CustomTextCLIP` whose text tower is causal and pools at EOS.
        dtype: of the matrix products in the blocks; all else is float32.

    Raises:
        ModelNotSupported: a Hugging Face text tower, one that is not causal, pools elsewhere, or
            has blocks of another kind.

    Source: open_clip.model.CLIP.encode_text, open_clip.transformer.TextTransformer.forward.
    """

    def __init__(self, clip: nn.Module, name: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        # OpenCLIP's classes declare none of these attributes, so they have no type to check
        tower: Any = clip.text if hasattr(clip, "text") else clip
        _check_tower(tower, name)
        self.token_embedding: nn.Embedding = tower.token_embedding
        self.positional_embedding: nn.Parameter = tower.positional_embedding
        blocks: Any = tower.transformer.resblocks
        self.blocks = nn.ModuleList(TextBlock(block, dtype) for block in blocks)
        self.ln_final: nn.Module = tower.ln_final
        self.text_projection: nn.Linear | nn.Parameter | None = tower.text_projection
        self.register_buffer("attn_mask", tower.attn_mask, persistent=False)

    attn_mask: Tensor

    @property
    def width(self) -> int:
        """W, the width of a token's embedding."""
        return self.token_embedding.embedding_dim

    @property
    def max_length(self) -> int:
        """The most tokens that a prompt may have, SOS and EOS included."""
        return len(self.positional_embedding)

    def encode_prefix(self, embeddings: Tensor) -> Prefix:
        """Encode the tokens that stand before all others, float32 [n, length, width]."""
        x, mask = self._enter(embeddings, 0)
        encoded = []
        for block in self.blocks:
            x, own = block(x, mask, None)
            encoded.append(own)
        return Prefix(tuple(encoded))

    def forward(self, embeddings: Tensor, eos: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Encode; see the class.

        Args:
            eos: positions of EOS among `embeddings`.
            prefix: what stands before them, of n rows or of one row for all.
        """
        before = prefix.blocks if prefix is not None else (None,) * len(self.blocks)
        x, mask = self._enter(embeddings, 0 if prefix is None else len(prefix))
        for block, seen in zip(self.blocks[:-1], before[:-1], strict=True):
            x, _ = block(x, mask, seen)
        x, _ = self.blocks[-1](x, mask[eos][:, None, None], before[-1], at=eos)
        pooled = self.ln_final(x.squeeze(1))
        if self.text_projection is None:
            features: Tensor = pooled
        elif isinstance(self.text_projection, nn.Linear):
            features = self.text_projection(pooled)
        else:
            features = pooled @ self.text_projection
        return features

    def _enter(self, embeddings: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Embeddings at their positions, and the rows of the mask for them."""
        end = start + embeddings.shape[1]
        return embeddings + self.positional_embedding[start:end], self.attn_mask[start:end, :end]


def _check_tower(tower: Any, name: str) -> None:
    if not hasattr(tower, "token_embedding"):
        found = f"a text tower of class {type(tower).__name__}"
    elif getattr(tower, "attn_mask", None) is None:
        found = "a text tower that is not causal"
    elif getattr(tower, "cls_emb", None) is not None:
        found = "a text tower that pools at an extra class token"
    elif (pool := getattr(tower, "text_pool_type", getattr(tower, "pool_type", "?"))) not in (
        _POOLS_AT_EOS
    ):
        found = f"a text tower that pools with {pool!r}"
    elif pool == "eos" and (eos := _eos_token(tower)) != _EOS:
        found = f"a text tower that pools at token {eos}"
    elif kinds := {type(b).__name__ for b in tower.transformer.resblocks} - {_BLOCK}:
        found = f"a text tower with blocks of class {min(kinds)}"
    else:
        return
    raise ModelNotSupported(
        where=f"model {name}",
        found=found,
        expected="a causal OpenCLIP text transformer that pools at EOS",
        next_step="choose another model, such as ViT-B-32-quickgelu or lite",
    )


def _eos_token(tower: nn.Module) -> object:
    # CLIP and CustomTextCLIP call it differently
    return getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
