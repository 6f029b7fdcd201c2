"""Neighbours on a ring, how many there have to be, and how many have to stay."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from fedapt.core.config import read_config
from fedapt.federation.flower.secure.group import Grouping, bound_faults

USUAL = Grouping(2 / 3, 0, 1 / 3, 0.1)


def test_few_clients_are_all_neighbours() -> None:
    assert USUAL.draw([2, 5, 9]) == {2: [5, 9], 5: [2, 9], 9: [2, 5]}
    for grouping in (
        Grouping(2 / 3, 11, 1 / 3, 0.1),
        Grouping(2 / 3, 200, 1 / 3, 0.1),
        Grouping(1.0, 0, 0.0, 0.0),  # nobody may drop out, so everybody holds a share
    ):
        found = grouping.draw(range(12))
        assert all(peers == [i for i in range(12) if i != c] for c, peers in found.items())


@pytest.mark.parametrize(
    ("n", "neighbours", "degree"), [(33, 0, 16), (1000, 0, 118), (9, 4, 4), (9, 3, 4)]
)
def test_many_clients_form_a_ring(n: int, neighbours: int, degree: int) -> None:
    clients = [3 * i for i in range(n)]
    grouping = Grouping(2 / 3, neighbours, 1 / 3, 0.1)
    found = grouping.draw(clients)
    assert sorted(found) == clients
    for client, peers in found.items():
        assert len(set(peers)) == len(peers) == degree
        assert peers == sorted(peers)
        assert client not in peers
        assert all(client in found[peer] for peer in peers)
    reached, edge = {0}, {0}
    while edge:
        edge = {p for c in edge for p in found[c]} - reached
        reached |= edge
    assert len(reached) == n
    assert grouping.draw(clients) != found  # drawn, and not from the run's seed


def test_how_many_have_to_stay() -> None:
    # two thirds, rounded up; never less than half and one more, nor than three
    needed = Grouping(2 / 3, 0, 0.0, 0.0).count_needed
    assert [needed(n) for n in range(3, 13)] == [3, 3, 4, 4, 5, 6, 6, 7, 8, 8]
    half = Grouping(0.5, 0, 0.0, 0.0).count_needed
    assert [half(n) for n in range(3, 13)] == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert Grouping(1.0, 0, 0.0, 0.0).count_needed(7) == 7
    assert all(2 * half(n) > n for n in range(3, 200))


def test_colluders_below_the_threshold_do_not_isolate_a_client() -> None:
    two = Grouping(2 / 3, 2, 0.0, 0.0)
    # a group of three needs three shares, and two colluders know all masks of the third
    assert "2 neighbours, which colluders can isolate" in two.find_fault(9, 2)
    with pytest.raises(ValueError, match="2 neighbours, which colluders can isolate"):
        two.draw(range(9))
    assert two.find_fault(3, 2) == ""  # everybody: they have the sum of the others


def test_too_few_neighbours_for_the_shares_are_refused() -> None:
    few = Grouping(2 / 3, 12, 1 / 3, 0.1)
    with pytest.raises(ValueError, match="secrets are not safe with a probability above 2"):
        few.draw(range(1000))
    # nobody colludes, and many drop out
    with pytest.raises(ValueError, match="secrets cannot be restored with a probability above 2"):
        Grouping(2 / 3, 60, 0.0, 0.3).draw(range(1000))
    assert USUAL.find_fault(1000, 116)
    assert not USUAL.find_fault(1000, 118)


def fault_by_hand(n: int, k: int, t: int, marked: int, limit: int) -> Fraction:
    """Chance that more than `limit` of one client's k neighbours are among the marked, of all."""
    ways = list(itertools.combinations(range(1, n), k))
    return Fraction(sum(sum(i <= marked for i in way) > limit for way in ways), len(ways))


@pytest.mark.parametrize(("k", "t", "c", "d"), [(4, 4, 5, 2), (6, 5, 6, 1), (4, 3, 3, 3)])
def test_the_bounds_by_counting(k: int, t: int, c: int, d: int) -> None:
    n = 10
    unsafe, lost = (Fraction(*chance) for chance in bound_faults(n, k, t, c, d))
    assert lost == n * fault_by_hand(n, k, t, d, k - t)
    # two runs of k / 2 places of a ring, both among the c + d of n that are gone
    gone = set(range(c + d))
    orders = list(itertools.permutations(range(n), k))
    split = Fraction(sum(gone.issuperset(order) for order in orders), len(orders))
    assert unsafe == (n - c) * fault_by_hand(n, k, t, c, t - 1) + 45 * split


def test_a_ring_that_loses_fewer_than_its_neighbours_hangs_together() -> None:
    n, k = 8, 4
    steps = [-2, -1, 1, 2]
    for gone in itertools.combinations(range(n), k - 1):
        left = set(range(n)) - set(gone)
        reached, edge = {min(left)}, {min(left)}
        while edge:
            edge = {(c + s) % n for c in edge for s in steps} & left - reached
            reached |= edge
        assert reached == left
    assert bound_faults(n, k, 4, 3, 0)[0] == (0, bound_faults(n, k, 4, 3, 0)[0][1])


def test_settings() -> None:
    config = read_config(None, ["federation.secure_neighbours=6", "federation.secure_dropping=0.2"])
    assert Grouping.of(config.federation) == Grouping(2 / 3, 6, 1 / 3, 0.2)
