"""Closed-form classifiers: clients compute sums over images, and the server solves for weights.

    x = [f^; c]                     the unit feature and a constant, [D + 1]
    A = sum x x',  B = sum x y'     over a client's images, y = +1 for the image's class, else -1

    pooled     W_0 = (sum_d A_d + lambda I)^-1 (sum_d B_d + lambda P)
    domain     W_d = (A_d + mu I)^-1 (B_d + mu W_0)
    router     R   = (sum_d A_d n / n_d + rho I)^-1 [z_d n / n_d]_d,   z_d = sum x,  n = mean n_d

P holds the text encoder's class vectors minus their mean. Sums do not depend on the distribution of
images over clients, so W_0 is exactly the ridge solution of all images together. The router
regresses on the domain of an image, and every domain has the same weight. A's last column contains
z and the number of images: c z and c^2 n.

Noise on the sums, as differential privacy adds it, makes A indefinite. `solve` then sets its
negative eigenvalues to 0, which is the nearest A that images can have.

Sums are float64 in computations. They are sent and stored as float32 in units of `UNIT` images,
and A as its upper triangle.

Source: AFL (arXiv 2405.16240) for the pooled part; domains and router are fedapt's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

CONSTANT = 0.3
# a power of two, so that nothing is rounded. It brings sums into the range of trained values, for
# which the limits on updates and secure sums are chosen
UNIT = 1024


@dataclass(frozen=True)
class Sums:
    """Sums over images, float64, in units of `UNIT` images.

    Attributes:
        gram: A, [D + 1, D + 1].
        targets: B, [D + 1, C].
    """

    gram: Tensor
    targets: Tensor

    @property
    def feature_sum(self) -> Tensor:
        """z, the sum of x, [D + 1]."""
        return self.gram[:, -1] / CONSTANT

    @property
    def count(self) -> float:
        """Number of images, in the same unit."""
        return float(self.gram[-1, -1]) / CONSTANT**2

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.gram + other.gram, self.targets + other.targets)

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.gram - other.gram, self.targets - other.targets)

    def add_class(self) -> Sums:
        """The same images with one more class, which none of them has."""
        return Sums(self.gram, torch.cat([self.targets, -self.feature_sum[:, None]], dim=1))


def sum_images(features: Tensor, labels: Tensor, n_classes: int) -> Sums:
    """A client's sums over features float32 [n, D] and labels int64 [n]."""
    x = extend(features)
    y = 2.0 * one_hot(labels, n_classes).double() - 1.0
    return Sums(x.T @ x / UNIT, x.T @ y / UNIT)


def extend(features: Tensor) -> Tensor:
    """x, float64 [n, D + 1], of features float32 [n, D]."""
    unit = normalize(features.double(), dim=-1)
    return torch.cat([unit, unit.new_full((len(unit), 1), CONSTANT)], dim=1)


def pack(gram: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix [K, K], row by row: [K (K + 1) / 2]."""
    rows, columns = torch.triu_indices(len(gram), len(gram), device=gram.device)
    return gram[rows, columns]


def unpack(packed: Tensor) -> Tensor:
    """The symmetric matrix [K, K] of an upper triangle [K (K + 1) / 2]."""
    size = round((8 * len(packed) + 1) ** 0.5 - 1) // 2
    rows, columns = torch.triu_indices(size, size, device=packed.device)
    gram = packed.new_zeros(size, size)
    gram[rows, columns] = packed
    gram[columns, rows] = packed
    return gram


def solve(sums: Sums, penalty: float, pull: Tensor) -> Tensor:
    """(A + lambda I)^-1 (B + lambda P): float64 [D + 1, C].

    Args:
        penalty: lambda, for sums in units of one image.
        pull: P, float64 [D + 1, C]; the solution is near P if the images give little information.
    """
    share = penalty / UNIT
    identity = torch.eye(len(sums.gram), dtype=torch.float64, device=sums.gram.device)
    gram = sums.gram
    if torch.linalg.cholesky_ex(gram + share / 2 * identity).info:
        values, vectors = torch.linalg.eigh(gram)
        gram = (vectors * values.clamp(min=0)) @ vectors.T
    solution: Tensor = torch.linalg.solve(gram + share * identity, sums.targets + share * pull)
    return solution


def solve_router(sums: Sequence[Sums], penalty: float) -> Tensor:
    """R, float64 [D + 1, N]: ridge regression on the domain, each with the same weight.

    A domain without images has a column of zeros.
    """
    counts = [part.count for part in sums]
    mean = sum(counts) / max(1, sum(count > 0 for count in counts))
    factors = [mean / count if count > 0 else 0.0 for count in counts]
    gram = sum(
        (factor * part.gram for factor, part in zip(factors, sums, strict=True)),
        torch.zeros_like(sums[0].gram),
    )
    columns = [f * part.feature_sum for f, part in zip(factors, sums, strict=True)]
    balanced = Sums(gram, torch.stack(columns, dim=1))
    return solve(balanced, penalty, torch.zeros_like(balanced.targets))
