"""Differential privacy: clipped updates, normal noise, and the resulting epsilon.

    update    u, scaled to length C at most: u min(1, C / |u|)
    noise     N(0, (z C)^2) on a sum of updates whose sensitivity is C: noise multiplier z
    epsilon   releases with multipliers z_1, z_2, ... count as one with (sum 1 / z_i^2)^-1/2

Normal numbers come from the operating system's randomness, never from the run's seed, which every
node knows. They are float64, and are rounded with the sum to float32 or fixed point. The proofs
assume real numbers and do not cover information in the last bits (Mironov, CCS 2012).

Source: Balle and Wang (arXiv 1805.06530) for the exact epsilon of a Gaussian mechanism, through
`dp_accounting`; Dong, Roth, Su (arXiv 1905.02383), corollary 3.3, for the composition.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fedapt.training.client import ClientUpdate
from fedapt.training.methods.base import Learned


def clip_move(learned: Learned, start: Learned, length: float) -> Learned:
    """The differences from `start`, scaled so that their norm over all tensors is `length` at most.

    Returns:
        float64, with the names and shapes of `start`.
    """
    moved = {name: learned[name].double() - tensor.double() for name, tensor in start.items()}
    factor = min(1.0, length / max(measure_length(moved), 1e-300))
    return {name: factor * tensor for name, tensor in moved.items()}


def shorten(update: ClientUpdate, start: Learned, length: float) -> ClientUpdate:
    """The update, scaled to `length` at most.

    Args:
        start: the tensors that the client was sent.
    """
    moved = clip_move(update.learned, start, length)
    learned = {name: (start[name].double() + tensor).float() for name, tensor in moved.items()}
    return dataclasses.replace(update, learned=learned)


def measure_length(tensors: Learned) -> float:
    """L2 norm over all tensors."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def draw_normal(like: Tensor, random: bytes | None = None) -> Tensor:
    """N(0, 1), float64, of the same shape, by the inverse of its distribution function.

    Args:
        random: 8 random bytes for each value; None for those of the operating system.
    """
    random = os.urandom(8 * like.numel()) if random is None else random
    whole = np.frombuffer(random, np.uint64) >> 11
    uniform = torch.from_numpy((whole.astype(np.float64) + 0.5) / (1 << 53))
    # 1 - 2^-54 rounds to 1, whose inverse is infinite
    normal: Tensor = torch.special.ndtri(uniform.clamp(max=1 - 2.0**-53))
    return normal.view(like.shape).to(like.device)


def find_epsilon(multipliers: Iterable[float], delta: float) -> float:
    """Epsilon of a sequence of Gaussian mechanisms without amplification by sampling.

    Args:
        multipliers: standard deviation of the noise over the sensitivity, one for each release.
    """
    from dp_accounting import get_epsilon_gaussian

    precision = sum(1 / z**2 for z in multipliers)
    return float(get_epsilon_gaussian(1 / math.sqrt(precision), delta))
