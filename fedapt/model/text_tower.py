"""The text tower of an OpenCLIP model, run on embeddings instead of token ids.

Prompt tuning feeds vectors that no token id has, so the tower is entered behind its embedding
table. The tower is causal and pools at EOS, hence a sequence cut behind the longest EOS gives the
same features for a fraction of the work; towers for which this does not hold are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedapt.core.errors import ModelNotSupported

_POOLS_AT_EOS = ("argmax", "eos")
_EOS = 49407  # the last token of CLIP's vocabulary


class TextTower(nn.Module):
    """Embeddings float32 [n, length, width] and EOS positions int64 [n] -> features [n, joint].

    Args:
        clip: an OpenCLIP `CLIP` or `CustomTextCLIP` whose text tower is causal and pools at EOS.

    Raises:
        ModelNotSupported: a Hugging Face text tower, one that is not causal, or pools elsewhere.

    Source: open_clip.model.CLIP.encode_text, open_clip.transformer.TextTransformer.forward.
    """

    def __init__(self, clip: nn.Module, name: str) -> None:
        super().__init__()
        # OpenCLIP's classes declare none of these attributes, so they have no type to check
        tower: Any = clip.text if hasattr(clip, "text") else clip
        _check_tower(tower, name)
        self.token_embedding: nn.Embedding = tower.token_embedding
        self.positional_embedding: nn.Parameter = tower.positional_embedding
        self.transformer: nn.Module = tower.transformer
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

    def forward(self, embeddings: Tensor, eos: Tensor) -> Tensor:
        """Encode; see the class."""
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        # LayerNorm acts on each position alone: normalising only the pooled ones changes no bit
        pooled = self.ln_final(x[torch.arange(len(x), device=x.device), eos])
        if self.text_projection is None:
            features: Tensor = pooled
        elif isinstance(self.text_projection, nn.Linear):
            features = self.text_projection(pooled)
        else:
            features = pooled @ self.text_projection
        return features


def _check_tower(tower: nn.Module, name: str) -> None:
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
