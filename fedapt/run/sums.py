"""Federations of sums, changed after their round: domains join and leave, classes are added.

All that the method `adaptive-analytic` keeps are each domain's sums over its images, so that these
are exact: the result is that of a federation which had been so from the start, and no other party
has to do anything.
"""

from __future__ import annotations

import dataclasses

import torch

from fedapt.core.errors import CheckpointError, DataError
from fedapt.model.checkpoint import Checkpoint
from fedapt.model.ridge import CONSTANT

_METHOD = "adaptive-analytic"
_GRAM, _TARGETS = "gram", "targets"


def join(federation: Checkpoint, other: Checkpoint) -> Checkpoint:
    """One federation of the domains of both.

    Args:
        federation: its domains come first; its settings stay.
        other: of domains that it does not have, trained by themselves.

    Raises:
        CheckpointError: of another method or CLIP, of other classes, or of a domain that is there.
    """
    for checkpoint in (federation, other):
        _check_method(checkpoint)
    mine, its = federation.info, other.info
    both = sorted({*mine.domains} & {*its.domains})
    for found, expected in (
        (f"the CLIP {its.clip_sha256[:12]}", f"the CLIP {mine.clip_sha256[:12]}"),
        (f"classes {', '.join(its.classes)}", f"classes {', '.join(mine.classes)}"),
        (f"domains in both: {', '.join(both)}" if both else "", ""),
    ):
        if found != expected:
            raise CheckpointError(
                where="the checkpoint that joins",
                found=found,
                expected=expected or "domains that the federation does not have",
                next_step="train it with the federation's CLIP and classes, on new domains",
            )
    n_domains = len(mine.domains)
    return Checkpoint(
        dataclasses.replace(
            mine,
            domains=(*mine.domains, *its.domains),
            keys=(*mine.keys, *its.keys),
            clients=(*mine.clients, *(n_domains + domain for domain in its.clients)),
        ),
        {
            name: torch.cat([federation.learned[name], other.learned[name]])
            for name in (_GRAM, _TARGETS)
        },
    )


def leave(federation: Checkpoint, domain: str) -> Checkpoint:
    """The federation without a domain: nothing of its images is left in it.

    Raises:
        CheckpointError: of another method.
        DataError: there is no such domain, or no other.
    """
    _check_method(federation)
    info = federation.info
    if domain not in info.domains or len(info.domains) == 1:
        raise DataError(
            where=f"domain {domain}",
            found=f"domains {', '.join(info.domains)}",
            expected="one of several domains of the federation",
            next_step="check the name",
        )
    kept = [index for index, name in enumerate(info.domains) if name != domain]
    clients = tuple(kept.index(index) for index in info.clients if index in kept)
    return Checkpoint(
        dataclasses.replace(
            info,
            domains=tuple(info.domains[index] for index in kept),
            keys=tuple(info.keys[index] for index in kept),
            clients=clients,
        ),
        {name: federation.learned[name][kept] for name in (_GRAM, _TARGETS)},
    )


def add_class(federation: Checkpoint, name: str) -> Checkpoint:
    """The federation with one more class, of which none of its images is.

    The class's column of B is minus the sum of x, which A's last column holds. A domain that has
    images of the class joins with them.

    Raises:
        CheckpointError: of another method.
        DataError: the class is there.
    """
    _check_method(federation)
    info = federation.info
    if name in info.classes:
        raise DataError(
            where=f"class {name}",
            found="a class that is there",
            expected="a new one",
            next_step="check the name",
        )
    targets, gram = federation.learned[_TARGETS], federation.learned[_GRAM]
    # of an upper triangle, row by row, the last of each row is the last column
    width = targets.shape[1]
    ends = torch.arange(width, 0, -1).cumsum(0) - 1
    column = -gram[:, ends].double() / CONSTANT
    return Checkpoint(
        dataclasses.replace(info, classes=(*info.classes, name)),
        {_GRAM: gram, _TARGETS: torch.cat([targets, column.float().unsqueeze(2)], dim=2)},
    )


def _check_method(checkpoint: Checkpoint) -> None:
    if checkpoint.info.method != _METHOD:
        raise CheckpointError(
            where="the checkpoint",
            found=f"the method {checkpoint.info.method}",
            expected=f"{_METHOD}, which keeps each domain's sums",
            next_step=f"train {_METHOD}, or train the domains together again",
        )
