"""Federations of sums, changed after their round: domains join, domains or images leave.

The method `adaptive-analytic` keeps only each domain's sums over its images. Such changes are
therefore exact: the result equals a federation that had these domains and images from the start,
and the other parties do nothing. A class without images can be added in the same way.
"""

from __future__ import annotations

import dataclasses

import torch

from fedapt.core.errors import CheckpointError, DataError
from fedapt.model.checkpoint import Checkpoint
from fedapt.model.ridge import CONSTANT, UNIT

_METHOD = "adaptive-analytic"
_GRAM, _TARGETS = "gram", "targets"


def join(federation: Checkpoint, other: Checkpoint) -> Checkpoint:
    """The federation with the domains of both.

    Args:
        federation: its domains come first; its settings stay.
        other: checkpoint of other domains, trained separately.

    Raises:
        CheckpointError: method, CLIP or classes differ, or a domain is in both.
    """
    for checkpoint in (federation, other):
        _check_method(checkpoint)
    mine, its = federation.info, other.info
    _check_same(other, federation, "the checkpoint that joins")
    if both := sorted({*mine.domains} & {*its.domains}):
        raise CheckpointError(
            where="the checkpoint that joins",
            found=f"domains in both: {', '.join(both)}",
            expected="domains that the federation does not have",
            next_step="train it on new domains",
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
    """The federation without a domain; the result holds nothing of its images.

    Raises:
        CheckpointError: the method is another one.
        DataError: an unknown domain, or the only one.
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


def subtract(federation: Checkpoint, other: Checkpoint) -> Checkpoint:
    """The federation without the images of another checkpoint, exact except for rounding.

    Args:
        other: sums over images that are in the federation, each under the domain that it has there.

    Raises:
        CheckpointError: method, CLIP or classes differ, or `other` has all images of a domain or
            more.
    """
    for checkpoint in (federation, other):
        _check_method(checkpoint)
    _check_same(other, federation, "the checkpoint that is subtracted")
    has, goes = count_images(federation), count_images(other)
    for domain, count in goes.items():
        if count >= has.get(domain, 0):
            raise CheckpointError(
                where=f"domain {domain} of the checkpoint that is subtracted",
                found=f"{count} images",
                expected=f"fewer than the federation's {has.get(domain, 0)}",
                next_step="remove the whole domain, or check the images of the other checkpoint",
            )
    learned = {name: tensor.clone() for name, tensor in federation.learned.items()}
    for index, domain in enumerate(other.info.keys):
        row = federation.info.keys.index(domain)
        for name in (_GRAM, _TARGETS):
            learned[name][row] -= other.learned[name][index]
    return Checkpoint(federation.info, learned)


def count_images(checkpoint: Checkpoint) -> dict[str, int]:
    """Training images behind each key's sums, in the order of the keys."""
    counts = checkpoint.learned[_GRAM][:, -1].double() / CONSTANT**2 * UNIT
    return dict(zip(checkpoint.info.keys, counts.round().int().tolist(), strict=True))


def add_class(federation: Checkpoint, name: str) -> Checkpoint:
    """The federation with one more class, which none of its images has.

    The class's column of B is minus the sum of x, which A's last column holds. A domain that has
    images of the class joins with them.

    Raises:
        CheckpointError: the method is another one.
        DataError: the class exists.
    """
    _check_method(federation)
    info = federation.info
    if name in info.classes:
        raise DataError(
            where=f"class {name}",
            found="an existing class",
            expected="a new one",
            next_step="check the name",
        )
    targets, gram = federation.learned[_TARGETS], federation.learned[_GRAM]
    # in an upper triangle, row by row, the last value of each row is in the last column
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


def _check_same(other: Checkpoint, federation: Checkpoint, where: str) -> None:
    its, mine = other.info, federation.info
    for found, expected in (
        (f"the CLIP {its.clip_sha256[:12]}", f"the CLIP {mine.clip_sha256[:12]}"),
        (f"classes {', '.join(its.classes)}", f"classes {', '.join(mine.classes)}"),
    ):
        if found != expected:
            raise CheckpointError(
                where=where,
                found=found,
                expected=expected,
                next_step="train it with the federation's CLIP and classes",
            )
