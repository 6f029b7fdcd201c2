"""One seed per purpose: a new draw changes no other draw."""

from __future__ import annotations

import hashlib


def child_seed(seed: int, purpose: str, *indices: int) -> int:
    """A seed in [0, 2**63) for one purpose of a run.

    Args:
        seed: the run's seed.
        purpose: name of the drawn values, such as `keys` or `batches`.
        indices: numbers that tell draws of one purpose apart, such as round and client.

    Returns:
        The same number on every machine and in every version.
    """
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1
