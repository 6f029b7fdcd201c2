"""Neighbours on a ring, and how many have to stay."""

from __future__ import annotations

import pytest

from fedapt.federation.flower.secure.group import choose_neighbours, count_needed


def test_few_clients_are_all_neighbours() -> None:
    assert choose_neighbours([2, 5, 9], 0) == {2: [5, 9], 5: [2, 9], 9: [2, 5]}
    for count in (0, 31, 200):
        found = choose_neighbours(range(32), count)
        assert all(peers == [i for i in range(32) if i != c] for c, peers in found.items())


@pytest.mark.parametrize(
    ("n", "count", "degree"), [(33, 0, 12), (1000, 0, 20), (9, 4, 4), (9, 3, 4)]
)
def test_many_clients_form_a_ring(n: int, count: int, degree: int) -> None:
    clients = [3 * i for i in range(n)]
    found = choose_neighbours(clients, count)
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
    assert choose_neighbours(clients, count) != found  # drawn, and not from the run's seed


def test_how_many_have_to_stay() -> None:
    # two thirds, rounded up; never less than half and one more, nor than three
    assert [count_needed(n, 2 / 3) for n in range(3, 13)] == [3, 3, 4, 4, 5, 6, 6, 7, 8, 8]
    assert [count_needed(n, 0.5) for n in range(3, 13)] == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert count_needed(7, 1.0) == 7
    for n in range(3, 200):
        assert 2 * count_needed(n, 0.5) > n
