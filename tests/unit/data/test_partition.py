"""Who holds which images, and under which key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fedapt.core.config import FederationConfig
from fedapt.core.errors import ConfigError, DataError
from fedapt.data.domains import Domain, ImageSet, ImageTable
from fedapt.data.partition import Client, divide_domains, name_keys

NAMES = ("photo", "sketch", "webcam")


def make_domains(*sizes: int, n_classes: int = 4) -> list[Domain]:
    """Domains whose training images lie in turn in one table, two test images behind them."""
    total = sum(sizes) + 2
    labels = torch.arange(total) % n_classes
    table = ImageTable(tuple(Path(str(i)) for i in range(total)), torch.zeros(total, 1), labels)
    rows = torch.arange(sum(sizes))
    owner = torch.tensor(
        [d for place in range(max(sizes)) for d in range(len(sizes)) if place < sizes[d]]
    )
    test = ImageSet(table, torch.arange(total - 2, total))
    return [
        Domain(NAMES[d], ImageSet(table, rows[owner == d]), test, test) for d in range(len(sizes))
    ]


def divide(
    domains: list[Domain], n_keys: int = 0, seed: int = 0, **federation: Any
) -> tuple[Client, ...]:
    config = FederationConfig(**({"min_images": 1} | federation))
    return divide_domains(domains, config, n_keys or len(domains), seed)


def dealt(clients: tuple[Client, ...]) -> list[list[int]]:
    return [client.data.rows.tolist() for client in clients]


def shares(clients: tuple[Client, ...], n_classes: int = 4) -> list[float]:
    """Of each client, the share of its largest class."""
    counts = [torch.bincount(c.data.labels, minlength=n_classes) for c in clients]
    return [float(count.max() / count.sum()) for count in counts]


def test_one_client_has_all_of_its_domain() -> None:
    domains = make_domains(7, 5, 9)
    clients = divide(domains)
    assert [(c.index, c.name, c.domain, c.key) for c in clients] == [
        (0, "photo", 0, 0),
        (1, "sketch", 1, 1),
        (2, "webcam", 2, 2),
    ]
    for client, domain in zip(clients, domains, strict=True):
        assert torch.equal(client.data.rows, domain.train.rows)


@pytest.mark.parametrize("alpha", [1e-6, 0.05, 0.5, 1e6])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("least", [1, 10])
def test_every_image_is_dealt_exactly_once(alpha: float, seed: int, least: int) -> None:
    domains = make_domains(83, 60)
    clients = divide(domains, seed=seed, clients_per_domain=5, alpha=alpha, min_images=least)
    assert len(clients) == 10
    for d, domain in enumerate(domains):
        own = dealt(tuple(c for c in clients if c.domain == d))
        assert len(own) == 5
        assert sorted(row for rows in own for row in rows) == domain.train.rows.tolist()
        assert all(rows == sorted(rows) for rows in own)
        assert min(map(len, own)) >= least


def test_exactly_the_min_images_for_each() -> None:
    clients = divide(make_domains(40), clients_per_domain=4, alpha=1e-3, min_images=10)
    assert [len(c.data) for c in clients] == [10] * 4


def test_names_and_order() -> None:
    clients = divide(make_domains(20, 20), clients_per_domain=2)
    assert [c.name for c in clients] == ["photo/1", "photo/2", "sketch/1", "sketch/2"]
    assert [c.index for c in clients] == [0, 1, 2, 3]
    assert [c.domain for c in clients] == [0, 0, 1, 1]


def test_a_large_alpha_gives_equal_clients() -> None:
    clients = divide(make_domains(400), clients_per_domain=5, alpha=1e6)
    assert all(abs(len(c.data) - 80) <= 4 for c in clients)
    for client in clients:  # of each class a fifth
        counts = torch.bincount(client.data.labels, minlength=4)
        assert int((counts - 20).abs().max()) <= 1


def test_a_small_alpha_gives_clients_of_few_classes() -> None:
    equal, uneven = (
        divide(make_domains(400), clients_per_domain=5, alpha=alpha, seed=3) for alpha in (1e6, 0.1)
    )
    assert max(shares(equal)) < 0.3
    assert sum(shares(uneven)) / 5 > 0.6
    sizes = [len(c.data) for c in uneven]
    assert max(sizes) > 3 * min(sizes)


def test_the_smallest_alpha_gives_each_class_to_one_client() -> None:
    clients = divide(make_domains(400), clients_per_domain=2, alpha=1e-6, seed=1)
    owners = [
        {c.index for c in clients if (c.data.labels == label).sum() > 1} for label in range(4)
    ]
    assert all(len(owner) == 1 for owner in owners)


def test_the_seed_decides() -> None:
    options: dict[str, Any] = {"clients_per_domain": 3, "alpha": 0.5}
    domains = make_domains(60, 60)
    first = dealt(divide(domains, seed=4, **options))
    torch.rand(3)
    assert dealt(divide(domains, seed=4, **options)) == first
    assert dealt(divide(domains, seed=5, **options)) != first
    # the draw of a domain is its own
    places = [[r // 2 for r in rows] for rows in first]
    assert places[:3] != places[3:]


def test_another_domain_moves_no_image() -> None:
    options: dict[str, Any] = {"clients_per_domain": 3, "alpha": 0.5}
    domains = make_domains(60, 60)
    assert dealt(divide(domains[:1], **options)) == dealt(divide(domains, **options))[:3]


def test_too_many_clients_are_refused() -> None:
    message = re.escape(
        "domain sketch: found 19 training images for 2 clients; expected at least 10 for each"
        " (federation.min_images)"
    )
    with pytest.raises(DataError, match=message) as caught:
        divide(make_domains(20, 19), clients_per_domain=2, min_images=10)
    assert "federation.clients_per_domain or federation.min_images" in str(caught.value)
    assert len(divide(make_domains(20, 20), clients_per_domain=2, min_images=10)) == 4


def test_one_client_may_have_few_images() -> None:
    assert len(divide(make_domains(3), min_images=10)) == 1


# keys


@pytest.mark.parametrize(
    ("n_keys", "per_domain", "keys", "names"),
    [
        (3, 1, [0, 1, 2], ("photo", "sketch", "webcam")),
        (1, 1, [0, 0, 0], ("photo+sketch+webcam",)),
        (2, 1, [0, 1, 0], ("photo+webcam", "sketch")),
        (2, 2, [0, 0, 1, 1, 0, 0], ("photo+webcam", "sketch")),
        (3, 2, [0, 0, 1, 1, 2, 2], ("photo", "sketch", "webcam")),
        (4, 2, [0, 3, 1, 1, 2, 2], ("photo/1", "sketch", "webcam", "photo/2")),
        (
            6,
            2,
            [0, 3, 1, 4, 2, 5],
            ("photo/1", "sketch/1", "webcam/1", "photo/2", "sketch/2", "webcam/2"),
        ),
        (
            5,
            3,
            [0, 3, 0, 1, 4, 1, 2, 2, 2],
            ("photo/1", "sketch/1", "webcam", "photo/2", "sketch/2"),
        ),
    ],
)
def test_keys_and_their_names(
    n_keys: int, per_domain: int, keys: list[int], names: tuple[str, ...]
) -> None:
    domains = make_domains(30, 30, 30)
    clients = divide(domains, n_keys, clients_per_domain=per_domain)
    assert [c.key for c in clients] == keys
    assert set(keys) == set(range(n_keys))  # none without a client
    assert name_keys(clients, [d.name for d in domains], n_keys) == names


def test_more_keys_than_clients_are_refused() -> None:
    message = "prompt.n_keys = 7: found 6 clients; expected no more keys than clients"
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        divide(make_domains(20, 20, 20), 7, clients_per_domain=2)
    assert caught.value.exit_code == 3
    assert "lower prompt.n_keys, or raise federation.clients_per_domain" in str(caught.value)
