"""How the server averages the clients' replies.

    V, Q <- mean over the round's clients, uniform or weighted by their images

Source: FedAPT (arXiv 2211.07864), FedAvg (arXiv 1602.05629).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedapt.train.client import ClientUpdate, Learned


def average(updates: Sequence[ClientUpdate], weighting: str) -> Learned:
    """Average V and Q, summed in float64 so that the order of clients does not matter.

    Args:
        weighting: `uniform` or `samples`.
    """
    counts = torch.ones(len(updates), dtype=torch.float64)
    if weighting == "samples":
        counts = torch.tensor([float(u.n_samples) for u in updates], dtype=torch.float64)

    def mean(tensors: list[Tensor]) -> Tensor:
        stacked = torch.stack(tensors).double()
        # divided last: whole counts times float32 values add up exactly in float64
        total = torch.einsum("k,k...->...", counts.to(stacked.device), stacked)
        return (total / float(counts.sum())).float()

    return Learned(
        mean([u.learned.context for u in updates]),
        mean([u.learned.adaptive_network for u in updates]),
    )
