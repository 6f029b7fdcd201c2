"""Two copies of a narrow text tower side by side in one that is twice as wide.

A text tower ends with a projection of its channels. Its features therefore span only as many
directions of the joint space as it has channels, for any context. `lite` was distilled with half as
many channels as its joint space has directions. It is loaded as two copies, and each reads one half
of a token's embedding:

    feature = (h_a + h_b) / 2 P + (h_a - h_b) R

A text has the same embedding in both halves, h_a = h_b, and its feature does not change. A learned
context may differ between the halves; the difference points along R, the rest of the joint space.
Only the LayerNorms read both halves.
"""

from __future__ import annotations

import torch
from torch import Tensor


def place_side_by_side(narrow: dict[str, Tensor], apart: Tensor) -> dict[str, Tensor]:
    """The state of OpenCLIP's text tower at twice the width and twice the heads.

    Args:
        narrow: state of the tower at its own width W, named as in `open_clip.CLIP`.
        apart: R, float32 [W, D].
    """
    return {name: _widen(name, tensor, apart) for name, tensor in narrow.items()}


def _widen(name: str, x: Tensor, apart: Tensor) -> Tensor:
    if name == "text_projection":
        return torch.cat([x / 2 + apart, x / 2 - apart])
    if name.endswith("in_proj_weight"):
        return torch.cat([_diagonal(part) for part in x.chunk(3)])
    if name.endswith("in_proj_bias"):
        return torch.cat([part.repeat(2) for part in x.chunk(3)])
    if name in ("token_embedding.weight", "positional_embedding"):
        return x.repeat(1, 2)
    return _diagonal(x) if x.dim() == 2 else x.repeat(2)


def _diagonal(x: Tensor) -> Tensor:
    zero = torch.zeros_like(x)
    return torch.cat([torch.cat([x, zero], dim=1), torch.cat([zero, x], dim=1)])


def choose_apart(projection: Tensor, seed: int) -> Tensor:
    """R: a random orthogonal basis of the complement of P's row space; its rows are as long as P's.

    Args:
        projection: P, float32 [W, D], D at least 2 W.
    """
    width, joint = projection.shape
    if joint < 2 * width:
        raise ValueError(f"{width} channels reach more than half of {joint} directions already")
    rest = torch.linalg.svd(projection.double(), full_matrices=True).Vh[width : 2 * width]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(noise).Q @ rest * projection.norm(dim=1).mean()
    return basis.float()
