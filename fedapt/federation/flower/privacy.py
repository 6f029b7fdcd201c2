"""Noise that a node adds to its own update, and the differential privacy that results.

    update    (learned - start) scaled to length C at most + N(0, (z C)^2)
    local     against a reader of one reply: any update in place of any other, sensitivity 2 C,
              multiplier z / 2
    secure    against a reader of a sum of n: one update, or zero in its place, sensitivity C,
              multiplier z sqrt(n), if all n nodes add their noise honestly

C is `federation.node_clip`, z is `federation.node_noise`. The noise is a keystream of the node's
own secret, for one start and one update. A server that asks for the same update again gets the same
noise, and cannot average it away. Another update or start has other noise.

Source: arXiv 2102.06387 (noise that adds up in a secure sum); NIST SP 800-38A (the keystream).
"""

from __future__ import annotations

import dataclasses
import math

from fedapt.core.config import FederationConfig
from fedapt.federation.flower.secure.binding import hash_parts, hash_tensors
from fedapt.federation.flower.secure.masks import derive, expand
from fedapt.training.client import ClientUpdate
from fedapt.training.methods.base import Learned
from fedapt.training.privacy import clip_move, draw_normal


def clip_and_noise(
    update: ClientUpdate, start: Learned, config: FederationConfig, secret: bytes
) -> ClientUpdate:
    """A client's update, clipped and with noise, if the run requires it.

    Args:
        start: the tensors that the client was sent.
        secret: 32 random bytes that only this node has.
    """
    if not config.node_clip:
        return update
    moved = clip_move(update.learned, start, config.node_clip)
    width = config.node_noise * config.node_clip
    if width:
        settings = repr((config.node_clip, config.node_noise)).encode()
        about = hash_parts(hash_tensors(start), hash_tensors(update.learned), settings)
        for name, tensor in moved.items():
            key = derive(secret, f"noise on {name} of {about.hex()}")
            words = expand(key, tensor.numel()).tobytes()
            moved[name] = tensor + width * draw_normal(tensor, words)
    learned = {name: (start[name].double() + tensor).float() for name, tensor in moved.items()}
    return dataclasses.replace(update, learned=learned)


def find_multiplier(config: FederationConfig, n_replies: int) -> float:
    """Noise multiplier of a round with this number of updates."""
    z = config.node_noise
    return z * math.sqrt(n_replies) if config.secure else z / 2
