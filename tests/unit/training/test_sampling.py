"""Which clients take part in a round."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from fedapt.core.config import FederationConfig
from fedapt.core.errors import ConfigError
from fedapt.data.domains import ImageSet, ImageTable
from fedapt.data.partition import Client
from fedapt.training.sampling import check_sampling, sample_clients

NOBODY = ImageSet(ImageTable((), torch.empty(0, 1), torch.empty(0)), torch.empty(0))
CLIENTS = tuple(Client(i, str(i), i // 4, i // 4, NOBODY) for i in range(12))  # three domains


def drawn(round_number: int, seed: int = 0, **federation: Any) -> list[int]:
    config = FederationConfig(clients_per_domain=4, **federation)
    return [c.index for c in sample_clients(CLIENTS, config, seed, round_number)]


def test_every_client_by_default() -> None:
    assert drawn(0) == drawn(7, seed=3) == list(range(12))


@pytest.mark.parametrize("sampled", [1, 5, 12])
def test_a_draw_from_all(sampled: int) -> None:
    for number in range(20):
        found = drawn(number, sampled=sampled)
        assert found == sorted(set(found))
        assert len(found) == sampled


@pytest.mark.parametrize("sampled", [1, 3, 4])
def test_a_draw_from_each_domain(sampled: int) -> None:
    for number in range(20):
        found = drawn(number, sampled_per_domain=sampled)
        assert found == sorted(set(found))
        assert Counter(i // 4 for i in found) == {0: sampled, 1: sampled, 2: sampled}


@pytest.mark.parametrize("rule", ["sampled", "sampled_per_domain"])
def test_a_round_draws_the_same_however_often_it_is_run(rule: str) -> None:
    rounds = [drawn(number, **{rule: 1}) for number in range(100)]
    for number in reversed(range(100)):  # in another order, as after --resume
        assert drawn(number, **{rule: 1}) == rounds[number]
    assert [drawn(number, seed=1, **{rule: 1}) for number in range(100)] != rounds
    counts = Counter(index for found in rounds for index in found)
    assert set(counts) == set(range(12))  # nobody is left out
    if rule == "sampled_per_domain":  # domains draw independently
        assert len({tuple(i % 4 for i in found) for found in rounds}) > 10


def check(n_clients: int = 12, **federation: Any) -> None:
    check_sampling(FederationConfig(clients_per_domain=4, **federation), n_clients)


def test_draws_that_can_be_made() -> None:
    check()
    check(sampled=12)
    check(sampled_per_domain=4)


def test_more_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"federation\.sampled = 13: found 12 clients; expected"):
        check(sampled=13)
    message = r"federation\.sampled_per_domain = 5: found 4 clients in each domain; expected no"
    with pytest.raises(ConfigError, match=message) as caught:
        check(sampled_per_domain=5)
    assert "lower federation.sampled_per_domain, or raise" in str(caught.value)


def test_two_rules_at_once() -> None:
    with pytest.raises(
        ConfigError, match="federation: found both sampled and sampled_per_domain; expected one"
    ):
        check(sampled=2, sampled_per_domain=1)
