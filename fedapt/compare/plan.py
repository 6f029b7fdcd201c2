"""What a comparison runs: one cell for each method, protocol, seed and learning rate.

in-domain       every domain trains and is tested on images of its own that it kept apart
leave-one-out   each domain in turn trains nothing and is the one that is tested
dirichlet       several clients share a domain, labels by Dirichlet(alpha); one of each domain
a round (federation.clients_per_domain, alpha; 5 and 0.5 unless set)
few-shot        k training images of each class and domain (data.shots; 8 unless set)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from fedapt.core.config import METHODS, Config
from fedapt.core.errors import UsageError

IN_DOMAIN, LEAVE_ONE_OUT, DIRICHLET, FEW_SHOT = (
    "in-domain",
    "leave-one-out",
    "dirichlet",
    "few-shot",
)
PROTOCOLS = (IN_DOMAIN, LEAVE_ONE_OUT, DIRICHLET, FEW_SHOT)
_CLIENTS_PER_DOMAIN, _SHOTS = 5, 8


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        fold: the domain that is left out, or nothing.
    """

    protocol: str
    fold: str
    method: str
    seed: int
    lr: float

    @property
    def path(self) -> PurePosixPath:
        """Of its result, below the comparison's folder."""
        folder = PurePosixPath("cells", self.protocol)
        if self.fold:
            folder /= self.fold
        return folder / self.method / f"seed-{self.seed}-lr-{self.lr:g}.json"

    def configure(self, base: Config) -> Config:
        """The run's settings."""
        data, federation = base.data, base.federation
        data = dataclasses.replace(data, split_seed=self.seed, leave_out=self.fold)
        if self.protocol == FEW_SHOT:
            data = dataclasses.replace(data, shots=data.shots or _SHOTS)
        if self.protocol == DIRICHLET:
            several = max(federation.clients_per_domain, 1)
            federation = dataclasses.replace(
                federation,
                clients_per_domain=several if several > 1 else _CLIENTS_PER_DOMAIN,
                sampled_per_domain=federation.sampled_per_domain or int(not federation.sampled),
            )
        train = dataclasses.replace(base.train, method=self.method, seed=self.seed, lr=self.lr)
        return dataclasses.replace(base, data=data, federation=federation, train=train)


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        methods, protocols: names, in the order of the tables.
        seeds: each has its own split, keys, starts and batches.
        rates: learning rates; of several, each method takes the one with the best mean validation
            accuracy in-domain, over all seeds.
    """

    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_names("--methods", self.methods, METHODS)
        _check_names("--protocols", self.protocols, PROTOCOLS)

    def cells(self, protocol: str, method: str, lr: float, domains: Sequence[str]) -> list[Cell]:
        """The cells of one method under one protocol."""
        folds = tuple(domains) if protocol == LEAVE_ONE_OUT else ("",)
        return [Cell(protocol, fold, method, seed, lr) for fold in folds for seed in self.seeds]


def _check_names(where: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise UsageError(
            where=where,
            found=repr(unknown[0]) if unknown else f"{', '.join(names) or 'nothing'}",
            expected=f"different ones of {', '.join(known)}",
            next_step="check the spelling",
        )
