"""Who shares with whom in a round, and how many of them have to stay.

Up to 32 clients everybody is everybody's neighbour. Beyond, a client's neighbours are the nearest
about 2 log2(n) on a ring in random order, so that its work grows with log n.

Source: Bell et al. (eprint 2020/704).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

LEAST = 3  # of a sum of two, each of the two can take off its own
_EVERYBODY = 32


def choose_neighbours(clients: Sequence[int], count: int) -> dict[int, list[int]]:
    """Client -> its neighbours in ascending order; each is a neighbour of its neighbours.

    Args:
        count: of neighbours, rounded up to an even number; 0 for all, or about 2 log2(n) where
            there are many clients.
    """
    n = len(clients)
    if not count and n > _EVERYBODY:
        count = 2 * math.ceil(math.log2(n))
    half = (count + 1) // 2
    if not count or 2 * half >= n - 1:
        return {client: sorted(set(clients) - {client}) for client in clients}
    # whoever knows the run's seed must not know who is whose neighbour
    ring = list(clients)
    secrets.SystemRandom().shuffle(ring)
    steps = [step for step in range(-half, half + 1) if step]
    return {
        client: sorted(ring[(place + step) % n] for step in steps)
        for place, client in enumerate(ring)
    }


def count_needed(n_group: int, share: float) -> int:
    """Of a client and its neighbours, how many have to reply to the last stage.

    More than half of them, and one more: nobody can then be asked for both secrets of a client
    behind the others' backs, and a ring with gaps still hangs together.

    Args:
        n_group: a client and its neighbours.
        share: `federation.secure_threshold`.
    """
    return max((n_group - 1) // 2 + 2, math.ceil(share * n_group - 1e-9))
