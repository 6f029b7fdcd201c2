"""The text tower of an OpenCLIP model, run on embeddings instead of token ids.

Prompt tuning needs vectors that no token id has, so the tower starts after its embedding table.
Most towers are causal and pool at EOS. A sequence that is cut after the longest EOS then gives the
same features for a fraction of the work, and the first tokens can be encoded once, as a prefix.
Towers with attention in both directions (SigLIP, MobileCLIP) get whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedapt.core.errors import ModelNotSupported
from fedapt.model.text_block import KeysValues, TextBlock
from fedapt.model.tokens import Layout, PromptTokenizer

_POOLS = {"argmax": "EOS", "eos": "EOS", "last": "last"}
_BLOCK = "ResidualAttentionBlock"


@dataclass(frozen=True)
class Prefix:
    """Tokens before all others, encoded once: keys and values for each block."""

    blocks: tuple[KeysValues, ...]

    def __len__(self) -> int:
        return self.blocks[0].keys.shape[2]

    def repeat(self, times: int) -> Prefix:
        """Each row repeated `times` times, for the classes that follow one context."""
        return Prefix(tuple(block.repeat(times) for block in self.blocks))


class TextTower(nn.Module):
    """Embeddings float32 [n, length, width] and pooled positions int64 [n] -> features [n, joint].

    Args:
        clip: an OpenCLIP `CLIP`, `CustomTextCLIP` or `CoCa` with a text transformer of OpenCLIP's.
        dtype: dtype of the matrix products in the blocks; all else is float32.

    Raises:
        ModelNotSupported: a Hugging Face text tower, one that pools elsewhere, masks its padding,
            or has blocks of another kind.

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
        self.class_token: nn.Parameter | None = getattr(tower, "cls_emb", None)
        self.layout = self._read_layout(tower)
        self.register_buffer("attn_mask", tower.attn_mask, persistent=False)

    attn_mask: Tensor | None

    def _read_layout(self, tower: Any) -> Layout:
        most = len(self.positional_embedding)
        if self.class_token is not None:
            return Layout(most - 1, seen_padding=1)
        pooled = "EOS" if _POOLS[_pool(tower)] == "EOS" else "last"
        return Layout(most, whole=tower.attn_mask is None, pooled=pooled)  # type: ignore[arg-type]

    @property
    def width(self) -> int:
        """W, the width of a token's embedding."""
        return self.token_embedding.embedding_dim

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only the tokens before it, which can then be encoded once."""
        return self.attn_mask is not None

    def encode_prefix(self, embeddings: Tensor) -> Prefix:
        """Encode the first tokens, float32 [n, length, width].

        Only for a causal tower.
        """
        x, mask = self._enter(embeddings, 0)
        encoded = []
        for block in self.blocks:
            x, own = block(x, mask, None)
            encoded.append(own)
        return Prefix(tuple(encoded))

    def forward(self, embeddings: Tensor, pooled: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Encode; see the class.

        Args:
            pooled: positions among `embeddings` whose output is the feature. For a tower with a
                class token they are those of EOS, which limit what that token sees.
            prefix: tokens before them, with n rows or one row for all.
        """
        start = 0 if prefix is None else len(prefix)
        before = prefix.blocks if prefix is not None else (None,) * len(self.blocks)
        x, mask = self._enter(embeddings, start)
        if self.class_token is not None:
            x, mask = self._append_class_token(x, mask, start + pooled)
            pooled = torch.full_like(pooled, x.shape[1] - 1)
        for block, seen in zip(self.blocks[:-1], before[:-1], strict=True):
            x, _ = block(x, mask, seen)
        if mask is not None:
            rows = torch.arange(len(pooled), device=pooled.device)
            mask = mask[rows, :, pooled, None] if mask.dim() == 4 else mask[pooled, None, None]
        x, _ = self.blocks[-1](x, mask, before[-1], at=pooled)
        feature = self.ln_final(x.squeeze(1))
        if self.text_projection is None:
            features: Tensor = feature
        elif isinstance(self.text_projection, nn.Linear):
            features = self.text_projection(feature)
        else:
            features = feature @ self.text_projection
        return features

    def _enter(self, embeddings: Tensor, start: int) -> tuple[Tensor, Tensor | None]:
        """Embeddings at their positions, and the rows of the mask for them."""
        end = start + embeddings.shape[1]
        mask = None if self.attn_mask is None else self.attn_mask[start:end, :end]
        return embeddings + self.positional_embedding[start:end], mask

    def _append_class_token(
        self, x: Tensor, mask: Tensor | None, eos: Tensor
    ) -> tuple[Tensor, Tensor]:
        """CoCa's class token after all others, at the last position of the tower.

        CoCa shifts its padding mask by one place. The class token sees the text and one token of
        padding, but not itself. Without padding it sees itself. The weights were trained this way.
        """
        if self.class_token is None or mask is None:
            raise AssertionError("a class token stands in causal towers only")
        last = len(self.positional_embedding) - 1
        token = (self.class_token + self.positional_embedding[last]).expand(len(x), 1, -1)
        places = torch.cat([torch.arange(mask.shape[1]), torch.tensor([last])]).to(x.device)
        hidden = places > eos[:, None] + 1
        row = x.new_zeros(hidden.shape).masked_fill(hidden, float("-inf"))
        others = nn.functional.pad(mask, (0, 1), value=float("-inf")).expand(len(x), -1, -1)
        return torch.cat([x, token], dim=1), torch.cat([others, row[:, None]], dim=1)[:, None]


def check_tokens(tower: nn.Module, tokenizer: PromptTokenizer, name: str) -> None:
    """Refuse a tower that pools at a token that the tokenizer does not append to a text.

    Raises:
        ModelNotSupported: the tower would pool inside a learned context.
    """
    inner: Any = tower.text if hasattr(tower, "text") else tower
    if _pool(inner) == "eos" and (eos := _eos_token(inner)) not in tokenizer.behind:
        raise _refuse(name, f"a text tower that pools at token {eos}")


def _pool(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", "?"))


def _check_tower(tower: Any, name: str) -> None:
    has_class_token = getattr(tower, "cls_emb", None) is not None
    if not hasattr(tower, "token_embedding"):
        found = f"a text tower of class {type(tower).__name__}"
    elif getattr(tower, "use_pad_mask", False):
        found = "a text tower that masks its padding"
    elif has_class_token and (tower.attn_mask is None or tower.correct_cls_mask):
        found = "a text tower with a class token that is masked otherwise than CoCa's"
    elif not has_class_token and _pool(tower) not in _POOLS:
        found = f"a text tower that pools with {_pool(tower)!r}"
    elif kinds := {type(b).__name__ for b in tower.transformer.resblocks} - {_BLOCK}:
        found = f"a text tower with blocks of class {min(kinds)}"
    else:
        return
    raise _refuse(name, found)


def _refuse(name: str, found: str) -> ModelNotSupported:
    return ModelNotSupported(
        where=f"model {name}",
        found=found,
        expected="an OpenCLIP text transformer that pools at EOS, at its end or at a class token",
        next_step="choose another model, such as ViT-B-32-quickgelu or lite",
    )


def _eos_token(tower: nn.Module) -> object:
    # CLIP and CustomTextCLIP have different names for it
    return getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
