"""The adaptive network Q: image feature -> domain scores -> domain weights.

    z = Q f;  z~ = (z - mean(z)) / std(z), unbiased, over the N domains;  w = softmax(z~ / tau)

Source: FedAPT (arXiv 2211.07864).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedapt.core.seeds import child_seed

# scores with a smaller spread count as equal, which avoids 0 / 0
MIN_STD = 1e-12


def draw_adaptive_network(n_domains: int, joint_width: int, seed: int) -> Tensor:
    """Q before training, as torch's Linear starts: float32 [N, D], uniform(+-1/sqrt(D))."""
    generator = torch.Generator().manual_seed(child_seed(seed, "adaptive_network"))
    unit = torch.rand(n_domains, joint_width, generator=generator)
    return (2 * unit - 1) / math.sqrt(joint_width)


def domain_weights(scores: Tensor, temperature: float) -> Tensor:
    """Domain scores z -> weights w.

    One domain gives w = 1 and equal scores give uniform weights, where the equation is 0 / 0.

    Args:
        scores: float32 [..., N].
        temperature: tau.

    Returns:
        float32 [..., N], summing to 1 over the last axis.
    """
    n_domains = scores.shape[-1]
    if n_domains == 1:
        return torch.ones_like(scores)
    centred = scores - scores.mean(-1, keepdim=True)
    std = (centred.square().sum(-1, keepdim=True) / (n_domains - 1)).sqrt()
    return (centred / std.clamp_min(MIN_STD) / temperature).softmax(-1)
