"""Encoding of an update as integers modulo 2^64, and decoding of their sum.

    words      images, images x loss, values out of range, then weight x (learned - start)
    value      round(x 2^f), two's complement; f as large as the sum of all clients allows

Words have 64 bits, because clients x images x range takes up to 40 bits. Each client rounds a
value by 2^-(f+1) at most, and the sum is exact, so the error of the mean of n clients, of weight w
together, is at most n 2^-(f+1) / w. With four clients of equal weight, w is 4 and f is 56 in the
default range, and the error is 2^-57. With weights by images, f is 32 and w at least 4, and the
error is 2^-33. The mean is then rounded to float32.
A value near the middle of two float32 numbers may be rounded to the other number with the encoding,
and later rounds start from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedapt.core.config import Config
from fedapt.core.errors import FederationError
from fedapt.federation.flower.secure.masks import Words
from fedapt.training.client import ClientUpdate
from fedapt.training.methods.base import Learned, n_parameters

MAX_IMAGES = 1 << 24
_MAX_LOSS = 1 << 10
_HEADER = 3


@dataclass(frozen=True)
class Total:
    """The sum of a round, as the server decodes it.

    Attributes:
        learned: the weighted mean of the learned tensors.
        images: number of images of all clients.
        loss: mean loss over those images.
        clipped: number of values out of range, over all clients.
    """

    learned: Learned
    images: int
    loss: float
    clipped: int


@dataclass(frozen=True)
class Encoding:
    """The fixed-point format of a round.

    Args:
        n_clients: maximum number of clients of the round.
        weighted: weight each client by its number of images; else all weigh the same.
        largest: maximum change of a value; larger changes are cut off and counted.
    """

    n_clients: int
    weighted: bool
    largest: float

    @classmethod
    def of(cls, config: Config, n_clients: int) -> Encoding:
        """The encoding for a run's settings."""
        weighted = config.train.weighting == "samples"
        return cls(n_clients, weighted, config.federation.secure_range)

    @property
    def fraction_bits(self) -> int:
        """Number of fraction bits of the values."""
        return _fraction_bits(self.n_clients * self.largest * (MAX_IMAGES if self.weighted else 1))

    @property
    def loss_bits(self) -> int:
        """Number of fraction bits of images x loss."""
        return _fraction_bits(self.n_clients * MAX_IMAGES * _MAX_LOSS)

    def encode(self, update: ClientUpdate, start: Learned) -> Words:
        """A client's words, uint64 [3 + values].

        Args:
            start: the tensors that the client was sent.

        Raises:
            FederationError: NaN or infinity, which would destroy the sum, or more images than the
                sum can hold.
        """
        _check(update)
        weight = update.n_samples if self.weighted else 1
        moved = np.concatenate(
            [_flatten(update.learned[name]) - _flatten(start[name]) for name in start]
        )
        kept = np.clip(moved, -self.largest, self.largest)
        loss = update.n_samples * np.clip(update.loss, -_MAX_LOSS, _MAX_LOSS)
        words = np.empty(_HEADER + len(moved), np.int64)
        words[0] = update.n_samples
        words[1] = np.rint(np.ldexp(loss, self.loss_bits))
        words[2] = np.count_nonzero(kept != moved)
        words[_HEADER:] = np.rint(np.ldexp(kept * weight, self.fraction_bits))
        return words.view(np.uint64)

    def decode(self, total: Words, n_added: int, start: Learned) -> Total:
        """The mean of `n_added` clients.

        Raises:
            ValueError: not a sum of that many clients: a mask is left, or a client has encoded
                wrong values.
        """
        words = total.view(np.int64)
        images, clipped = int(words[0]), int(words[2])
        max_clipped = n_added * n_parameters(start)
        if not 0 < images <= n_added * MAX_IMAGES or not 0 <= clipped <= max_clipped:
            raise ValueError(f"a sum of {images} images, {clipped} values out of range")
        weight = images if self.weighted else n_added
        moved = np.ldexp(words[_HEADER:].astype(np.float64), -self.fraction_bits) / weight
        learned, at = {}, 0
        for name, tensor in start.items():
            change = torch.from_numpy(moved[at : at + tensor.numel()]).view(tensor.shape)
            learned[name] = (tensor.double() + change.to(tensor.device)).float()
            at += tensor.numel()
        loss = math.ldexp(int(words[1]), -self.loss_bits) / images
        return Total(learned, images, loss, clipped)


def _check(update: ClientUpdate) -> None:
    broken = [name for name, t in update.learned.items() if not bool(t.isfinite().all())]
    found, expected = "", "finite numbers"
    if broken or not math.isfinite(update.loss):
        found = f"{broken[0] if broken else 'a loss'} with NaN or infinity"
    elif not 0 < update.n_samples <= MAX_IMAGES:
        found, expected = f"{update.n_samples:,} images", f"1 to {MAX_IMAGES:,} in a secure round"
    if found:
        raise FederationError(
            where=f"client {update.client}",
            shareable=True,
            found=found,
            expected=expected,
            next_step="lower train.lr, or set train.images_per_round",
        )


def count_words(start: Learned) -> int:
    """Number of words in one client's vector."""
    return _HEADER + n_parameters(start)


def _fraction_bits(largest_sum: float) -> int:
    """Maximum number of fraction bits by which a sum of this size stays below 2^62."""
    return 62 - math.ceil(math.log2(largest_sum))


def _flatten(tensor: torch.Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = tensor.detach().cpu().double().numpy().ravel()
    return values
