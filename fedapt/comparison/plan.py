"""The cells of a comparison: one cell for each method, protocol, seed and learning rate.

in-domain       every domain trains, as one client, and is tested on its own test images
leave-one-out   each domain in turn is excluded from training and is the only one tested
dirichlet       several clients share a domain, labels by Dirichlet(alpha); a round has one
                client of each domain (federation.clients_per_domain, alpha; 5 and 0.5 unless set)
few-shot        k training images of each class and domain (data.shots; 8 unless set)

The settings of one protocol do not affect the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fedapt.core.config import Config, flatten, remove_paths
from fedapt.core.errors import UsageError
from fedapt.core.names import METHODS

IN_DOMAIN, LEAVE_ONE_OUT, DIRICHLET, FEW_SHOT = (
    "in-domain",
    "leave-one-out",
    "dirichlet",
    "few-shot",
)
PROTOCOLS = (IN_DOMAIN, LEAVE_ONE_OUT, DIRICHLET, FEW_SHOT)
_CLIENTS_PER_DOMAIN, _SHOTS = 5, 8
# a comparison sets these for each cell
_OWN = ("data.split_seed", "data.leave_out", "federation.join", "train.method", "train.seed")
# settings that one protocol reads
_OF_PROTOCOL = {
    "data.shots": FEW_SHOT,
    "federation.clients_per_domain": DIRICHLET,
    "federation.sampled_per_domain": DIRICHLET,
}


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        fold: the domain that is left out, or empty.
    """

    protocol: str
    fold: str
    method: str
    seed: int
    lr: float

    @property
    def path(self) -> PurePosixPath:
        """Path of its result, below the comparison's folder."""
        folder = PurePosixPath("cells", self.protocol)
        if self.fold:
            folder /= self.fold
        return folder / self.method / f"seed-{self.seed}-lr-{self.lr:g}.json"

    def configure(self, base: Config) -> Config:
        """The run's settings."""
        data, federation = base.data, base.federation
        data = dataclasses.replace(
            data,
            split_seed=self.seed,
            leave_out=self.fold,
            shots=(data.shots or _SHOTS) if self.protocol == FEW_SHOT else 0,
        )
        several, sampled = 1, 0
        if self.protocol == DIRICHLET:
            several = federation.clients_per_domain
            several = several if several > 1 else _CLIENTS_PER_DOMAIN
            sampled = federation.sampled_per_domain or int(not federation.sampled)
        federation = dataclasses.replace(
            federation, clients_per_domain=several, sampled_per_domain=sampled
        )
        train = dataclasses.replace(base.train, method=self.method, seed=self.seed, lr=self.lr)
        return dataclasses.replace(base, data=data, federation=federation, train=train)


@dataclass(frozen=True)
class Plan:
    """The methods, protocols, seeds and learning rates to compare.

    Attributes:
        methods, protocols: names, in the order of the tables.
        seeds: each has its own split, keys, starts and batches.
        rates: learning rates; each trial takes the one with the best accuracy on its own
            validation images.
    """

    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_names("methods", self.methods, tuple(METHODS))
        _check_names("protocols", self.protocols, PROTOCOLS)

    def trials(
        self, protocol: str, method: str, rates: Sequence[float], domains: Sequence[str]
    ) -> list[tuple[Cell, ...]]:
        """One for each fold and seed: its cells, one for each learning rate."""
        folds = tuple(domains) if protocol == LEAVE_ONE_OUT else ("",)
        return [
            tuple(Cell(protocol, fold, method, seed, lr) for lr in rates)
            for fold in folds
            for seed in self.seeds
        ]


def check_settings(config: Config, protocols: Sequence[str]) -> None:
    """Refuse settings that would have no effect.

    Raises:
        UsageError: each cell has a value of its own, or no protocol reads it.
    """
    usual = flatten(Config())
    changed = {name: v for name, v in flatten(config).items() if v != usual[name]}
    for name, value in changed.items():
        if name in _OWN:
            raise UsageError(
                where=f"{name} = {value!r}",
                found="a setting that differs from cell to cell",
                expected="a setting that methods, protocols and seeds do not change",
                next_step="leave it out",
            )
        if (protocol := _OF_PROTOCOL.get(name)) and protocol not in protocols:
            raise UsageError(
                where=f"{name} = {value!r}",
                found=f"protocols {', '.join(protocols)}",
                expected=f"{protocol}, the only protocol that reads this setting",
                next_step=f"leave it out, or add {protocol} to `protocols`",
            )


def shared_settings(config: Config) -> dict[str, Any]:
    """Settings that all cells share, before a method changes them: key -> value."""
    own = {*_OWN, "data.root", "train.lr"}
    settings = flatten(remove_paths(config))
    return {name: value for name, value in settings.items() if name not in own}


def _check_names(where: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise UsageError(
            where=where,
            found=repr(unknown[0]) if unknown else f"{', '.join(names) or 'nothing'}",
            expected=f"different names among {', '.join(known)}",
            next_step="check the spelling",
        )
