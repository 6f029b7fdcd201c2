"""Selection of the clients of a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedapt.core.config import FederationConfig
from fedapt.core.errors import ConfigError
from fedapt.core.seeds import child_seed
from fedapt.data.partition import ClientInfo


def check_sampling(config: FederationConfig, n_clients: int) -> None:
    """Refuse settings that draw more clients than there are.

    Raises:
        ConfigError: more clients in a round than there are, or both settings at once.
    """
    for name, sampled, there in (
        ("sampled", config.sampled, n_clients),
        ("sampled_per_domain", config.sampled_per_domain, config.clients_per_domain),
    ):
        if sampled > there:
            raise ConfigError(
                where=f"federation.{name} = {sampled}",
                found=f"{there} clients" + (" in each domain" if "per" in name else ""),
                expected="no more clients in a round than there are",
                next_step=f"lower federation.{name}, or raise federation.clients_per_domain",
            )
    if config.sampled and config.sampled_per_domain:
        raise ConfigError(
            where="federation",
            found="both sampled and sampled_per_domain",
            expected="one of them",
            next_step="set one of them to 0",
        )


def sample_clients(
    clients: Sequence[ClientInfo], config: FederationConfig, seed: int, round_number: int
) -> list[ClientInfo]:
    """The clients of a round, in their order; the same in every run of the round."""
    if not config.sampled and not config.sampled_per_domain:
        return list(clients)
    generator = np.random.default_rng(child_seed(seed, "clients of the round", round_number))
    if config.sampled:
        groups = [(list(clients), config.sampled)]
    else:
        domains = sorted({client.domain for client in clients})
        groups = [
            ([c for c in clients if c.domain == d], config.sampled_per_domain) for d in domains
        ]
    drawn = [
        group[place]
        for group, count in groups
        for place in generator.choice(len(group), count, replace=False)
    ]
    return sorted(drawn, key=lambda client: client.index)
