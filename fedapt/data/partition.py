"""Partition of the domains' training images into clients.

A single client of a domain has all of its training images. With several clients per domain, each
class is divided in proportions drawn from Dirichlet(alpha). A small alpha gives clients with few
classes. Source: FedAPT's setting of five clients per domain; the draw is that of Hsu, Qi, Brown
(arXiv 1909.06335).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedapt.core.config import FederationConfig
from fedapt.core.errors import ConfigError, DataError
from fedapt.core.seeds import child_seed
from fedapt.data.domains import Domain, ImageSet


@dataclass(frozen=True)
class ClientInfo:
    """A client, local or remote.

    Attributes:
        index: among all clients.
        name: name of its domain, with a number if it shares the domain.
        domain: index of its domain.
        key: index of the key that it trains under.
    """

    index: int
    name: str
    domain: int
    key: int


@dataclass(frozen=True)
class Client(ClientInfo):
    """A client whose images are on this machine.

    Attributes:
        data: its training images.
    """

    data: ImageSet


def divide_domains(
    domains: Sequence[Domain], config: FederationConfig, n_keys: int, seed: int
) -> tuple[Client, ...]:
    """Divide the training images of every domain among its clients.

    Args:
        n_keys: keys of the federation. With fewer keys than domains, domain d has key d modulo
            their number; with more, the clients of a domain take its keys d, d + N, ... in turn.
        seed: the run's.

    Raises:
        ConfigError: more keys than clients, so that some would never be trained.
        DataError: a domain has fewer images than its clients need.
    """
    per_domain, n_domains = config.clients_per_domain, len(domains)
    if n_keys > per_domain * n_domains:
        raise ConfigError(
            where=f"prompt.n_keys = {n_keys}",
            found=f"{per_domain * n_domains} clients",
            expected="no more keys than clients: a key without a client is never trained",
            next_step="lower prompt.n_keys, or raise federation.clients_per_domain",
        )
    clients: list[Client] = []
    for d, domain in enumerate(domains):
        for i, share in enumerate(deal_domain(domain, d, config, seed)):
            clients.append(
                Client(
                    index=len(clients),
                    name=domain.name if per_domain == 1 else f"{domain.name}/{i + 1}",
                    domain=d,
                    key=choose_key(d, i, n_keys, n_domains),
                    data=share,
                )
            )
    return tuple(clients)


def choose_key(domain: int, place: int, n_keys: int, n_domains: int) -> int:
    """Index of the key of a domain's client number `place`, from 0; see `divide_domains`."""
    own_keys = range(domain % n_keys, n_keys, n_domains)
    return own_keys[place % len(own_keys)]


def deal_domain(domain: Domain, index: int, config: FederationConfig, seed: int) -> list[ImageSet]:
    """The training images of each client of one domain.

    Args:
        index: index of the domain among those that train.
        seed: the run's.

    Raises:
        DataError: the domain has fewer images than its clients need.
    """
    device = domain.train.rows.device
    return [
        domain.train.subset(torch.from_numpy(places).to(device))
        for places in _deal(domain, config, child_seed(seed, "partition", index))
    ]


def name_keys(
    clients: Sequence[ClientInfo], domains: Sequence[str], n_keys: int
) -> tuple[str, ...]:
    """Name of each key: its domain, the domains that share it, or a part of a domain.

    Args:
        domains: names of the domains.
    """
    users = [sorted({c.domain for c in clients if c.key == key}) for key in range(n_keys)]
    names = ["+".join(domains[d] for d in used) for used in users]
    return tuple(
        f"{name}/{names[:key].count(name) + 1}" if names.count(name) > 1 else name
        for key, name in enumerate(names)
    )


def _deal(domain: Domain, config: FederationConfig, seed: int) -> list[NDArray[np.int64]]:
    """Places in the domain's training set of each of its clients, sorted."""
    n_clients, n_images = config.clients_per_domain, len(domain.train)
    if n_clients == 1:
        return [np.arange(n_images)]
    if n_clients * config.min_images > n_images:
        raise DataError(
            where=f"domain {domain.name}",
            found=f"{n_images} training images for {n_clients} clients",
            expected=f"at least {config.min_images} for each (federation.min_images)",
            next_step="lower federation.clients_per_domain or federation.min_images",
        )
    generator = np.random.default_rng(seed)
    labels = domain.train.labels.cpu().numpy()
    shares: list[list[int]] = [[] for _ in range(n_clients)]
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        proportions = generator.dirichlet(np.full(n_clients, config.alpha))
        cuts = (np.cumsum(proportions)[:-1] * len(places)).round().astype(int)
        for share, part in zip(shares, np.split(places, cuts), strict=True):
            share.extend(part.tolist())
    while len(smallest := min(shares, key=len)) < config.min_images:
        # move images to clients that got fewer than the minimum
        largest = max(shares, key=len)
        smallest.append(largest.pop(int(generator.integers(len(largest)))))
    return [np.array(sorted(share), dtype=np.int64) for share in shares]
