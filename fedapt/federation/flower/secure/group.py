"""The neighbours of each client in a secure round, and the number of clients that must stay.

Every client has k neighbours, and t shares restore a secret. If the bounds below allow fewer than
all, a client's neighbours are the k nearest on a ring in random order, so its work grows with
log n. Among n clients, at most c = floor(gamma n) collude with the server, and at most
d = floor(delta n) drop out:

    a secret is safe        fewer than t of a client's neighbours collude
    a secret is restored    t of a client's neighbours stay
    sums are not split      the others are connected without those that collude or drop out

    P(t or more collude)    <= (n - c) P(X >= t),       X ~ Hypergeometric(n - 1, c, k)
    P(fewer than t stay)    <= n P(Y > k - t),          Y ~ Hypergeometric(n - 1, d, k)
    P(the ring is split)    <= C(n, 2) (c + d)_k / (n)_k

The first and the last together stay below 2^-40, the second below 2^-30. A ring is split if two
runs of k / 2 clients are gone; (x)_k is x (x - 1) ... (x - k + 1), for two runs at given places.

Source: Bell, Bonawitz, Gascon, Lepoint, Raykova, Secure single-server aggregation with
(poly)logarithmic overhead (CCS 2020, eprint 2020/704), section 3 and its semi-honest protocol: the
properties of a (sigma, eta)-good graph, with the tails computed instead of bounded.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fedapt.core.config import FederationConfig

MIN_CLIENTS = 3  # in a sum of two, each client can subtract its own update
SECURITY_BITS, CORRECTNESS_BITS = 40, 30


@dataclass(frozen=True)
class Grouping:
    """The settings by which the clients of a round form groups.

    Attributes:
        threshold: share of a client and its neighbours that must stay until a round's end.
        neighbours: number of neighbours of each client; 0 for the number that the bounds require.
        colluding, dropping: gamma and delta, shares of the round's clients.
    """

    threshold: float
    neighbours: int
    colluding: float
    dropping: float

    @classmethod
    def of(cls, config: FederationConfig) -> Grouping:
        """The grouping for a run's settings."""
        return cls(
            config.secure_threshold,
            config.secure_neighbours,
            config.secure_colluding,
            config.secure_dropping,
        )

    def count_needed(self, n_group: int) -> int:
        """t: how many of a client and its neighbours must reply to the last stage.

        This is more than half, and one more, so two sums of one round cannot both be unmasked.
        """
        return max((n_group - 1) // 2 + 2, math.ceil(self.threshold * n_group - 1e-9))

    def count_neighbours(self, n_clients: int) -> int:
        """k: an even number, or the number of all others.

        Raises:
            ValueError: `neighbours` are too few.
        """
        if self.neighbours:
            count = min(2 * math.ceil(self.neighbours / 2), n_clients - 1)
            if reason := self.find_fault(n_clients, count):
                raise ValueError(reason)
            return count
        return _choose_count(self, n_clients)

    def find_fault(self, n_clients: int, n_neighbours: int) -> str:
        """The reason why this number of neighbours is too small; empty if it is enough."""
        if n_neighbours >= n_clients - 1:  # all clients: colluders learn only the sum of the others
            return ""
        needed = self.count_needed(n_neighbours + 1)
        if n_neighbours < needed:
            return f"{n_neighbours} neighbours, which colluders can isolate"
        colluding = math.floor(self.colluding * n_clients + 1e-9)
        dropping = math.floor(self.dropping * n_clients + 1e-9)
        chances = bound_faults(n_clients, n_neighbours, needed, colluding, dropping)
        for what, (above, below), bits in (
            ("are not safe", chances[0], SECURITY_BITS),
            ("cannot be restored", chances[1], CORRECTNESS_BITS),
        ):
            if above << bits > below:
                chance = f"with a probability above 2^-{bits}"
                return f"{n_neighbours} neighbours, with which secrets {what} {chance}"
        return ""

    def draw(self, clients: Sequence[int]) -> dict[int, list[int]]:
        """Client -> its neighbours in ascending order; each is a neighbour of its neighbours.

        Raises:
            ValueError: `neighbours` are too few.
        """
        count = self.count_neighbours(len(clients))
        if count >= len(clients) - 1:
            return {client: sorted(set(clients) - {client}) for client in clients}
        # not the run's seed, which all nodes know and which would reveal the neighbours
        ring = list(clients)
        secrets.SystemRandom().shuffle(ring)
        steps = [step for step in range(-(count // 2), count // 2 + 1) if step]
        return {
            client: sorted(ring[(place + step) % len(ring)] for step in steps)
            for place, client in enumerate(ring)
        }


@lru_cache
def _choose_count(grouping: Grouping, n_clients: int) -> int:
    for count in range(2, n_clients - 1, 2):
        if not grouping.find_fault(n_clients, count):
            return count
    return n_clients - 1


# a probability as two integers, numerator and denominator
Chance = tuple[int, int]


def bound_faults(n: int, k: int, t: int, c: int, d: int) -> tuple[Chance, Chance]:
    """Bounds on the probabilities that secrets are not safe, and that they cannot be restored.

    Args:
        n, k, t, c, d: clients, neighbours, threshold, colluding and dropping clients; k < n - 1.
    """
    ways = math.comb(n - 1, k)
    caught = (n - c) * _count_tail(n - 1, c, k, t)
    lost = n * _count_tail(n - 1, d, k, k - t + 1)
    gone = min(n, c + d)
    split = math.comb(n, 2) * math.perm(gone, k)  # 0 if fewer than k are gone
    all_places = math.perm(n, k)
    return (caught * all_places + split * ways, ways * all_places), (lost, ways)


def _count_tail(population: int, marked: int, drawn: int, min_marked: int) -> int:
    """Number of draws with `min_marked` marked ones or more, of comb(population, drawn)."""
    return sum(
        math.comb(marked, x) * math.comb(population - marked, drawn - x)
        for x in range(max(0, min_marked), min(marked, drawn) + 1)
    )
