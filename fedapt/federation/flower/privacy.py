"""Noise that a node adds itself, and what the noise of all rounds gives away.

    update    (learned - start) scaled to length C at most + N(0, (z C)^2)
    local     whoever reads one reply: any update for any other, sensitivity 2 C, multiplier z / 2
    secure    whoever reads a sum of n: one update for none, sensitivity C, multiplier z sqrt(n)

C is `federation.node_clip`, z `federation.node_noise`.
The second counts the noise of all n, each of whom has to be honest. Noise comes from the operating
system's randomness, never from the run's seed, which the server knows.

Source: arXiv 1702.07476 (the accountant), arXiv 2102.06387 (noise that adds up in a secure sum).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from flwr.supercore.privacy_accounting import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    SamplingMethod,
)
from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant
from torch import Tensor

from fedapt.core.config import FederationConfig
from fedapt.train.client import ClientUpdate
from fedapt.train.methods.base import Learned


def blur(update: ClientUpdate, start: Learned, config: FederationConfig) -> ClientUpdate:
    """A client's update, shortened and with noise, where the run asks for it.

    Args:
        start: what the client was sent.
    """
    if not config.node_clip:
        return update
    moved = {name: update.learned[name].double() - start[name].double() for name in start}
    length = math.sqrt(sum(float(tensor.square().sum()) for tensor in moved.values()))
    factor = min(1.0, config.node_clip / max(length, 1e-300))
    width = config.node_noise * config.node_clip
    learned = {}
    for name, tensor in moved.items():
        noise = width * _draw_normal(tensor) if width else 0.0
        learned[name] = (start[name].double() + factor * tensor + noise).float()
    return dataclasses.replace(update, learned=learned)


def _draw_normal(like: Tensor) -> Tensor:
    """N(0, 1), float64, of the same shape, by the inverse of its distribution function."""
    whole = np.frombuffer(os.urandom(8 * like.numel()), np.uint64) >> 11
    uniform = torch.from_numpy((whole.astype(np.float64) + 0.5) / (1 << 53))
    # 1 - 2^-54 rounds to 1, of which the inverse is infinite
    normal: Tensor = torch.special.ndtri(uniform.clamp(max=1 - 2.0**-53))
    return normal.view(like.shape).to(like.device)


def account_nodes(config: FederationConfig, replies: Sequence[int]) -> float:
    """Epsilon at `federation.delta` of the nodes' own noise, for one that took part in every round.

    Args:
        replies: how many updates each round has used.
    """
    z = config.node_noise
    return account((z * math.sqrt(n) if config.secure else z / 2 for n in replies), config.delta)


def account(multipliers: Iterable[float], delta: float) -> float:
    """Epsilon of Gaussian mechanisms one after another, none of them amplified by sampling.

    Args:
        multipliers: standard deviation of the noise over sensitivity, one for each release.
    """
    privacy = PrivacyConfig(
        delta, 1, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
    )
    accountant = RdpAccountant(privacy)
    for multiplier, count in Counter(multipliers).items():
        accountant.compose(GaussianPrivacyEvent(multiplier, 1, 1), count)
    return accountant.get_privacy_spent().epsilon
