"""The head after the image tower: one form for every method whose classes are fixed vectors.

    z = Q r + q0                        r = f, or f / |f|
    w = softmax(z~ / tau)               z~ = z standardised over the N banks, or z itself
    logits_c = exp(s) ( sum_n w_n (f^ . T_nc) / sqrt(w' G_c w)  +  sum_n w_n b_nc )

With unit vectors T_nc and G_c = T_.c T_.c' the first term is the cosine to the renormalised mixture
of text features (FedAPT). With G_c = 1 for all pairs the root is sum w = 1, and the mixture is
linear: a linear probe, a ridge solution. One bank alone has w = 1.

Source: FedAPT (arXiv 2211.07864) for the routing; the mixture by Gram matrices is fedapt's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from fedapt.model.adaptive_network import domain_weights

MIN_NORM = 1e-12


@dataclass(frozen=True)
class Head:
    """The graph after the image tower: N banks of C class vectors, and their router.

    Attributes:
        banks: T, float32 [N, C, D].
        adaptive_network: Q, float32 [N, D].
        temperature: tau.
        logit_scale: exp(s).
        mixing: `exact`, or `hard`, which uses the bank with the maximum weight.
        bank_bias: b, float32 [N, C]; None for zeros.
        router_bias: q0, float32 [N]; None for zeros.
        renormalised: whether the mixture has unit length (text features), or is linear.
        router_takes_unit: whether the router reads f / |f| instead of f.
        router_standardised: whether its scores are standardised over the banks.
    """

    banks: Tensor
    adaptive_network: Tensor
    temperature: float
    logit_scale: float
    mixing: str = "exact"
    bank_bias: Tensor | None = None
    router_bias: Tensor | None = None
    renormalised: bool = True
    router_takes_unit: bool = False
    router_standardised: bool = True

    @cached_property
    def gram(self) -> Tensor:
        """G, float32 [C, N, N]; ones if the mixture is linear."""
        if self.renormalised:
            return gram_matrices(self.banks)
        n_banks, n_classes = self.banks.shape[:2]
        return self.banks.new_ones(n_classes, n_banks, n_banks)

    @torch.inference_mode()
    def weights(self, features: Tensor) -> Tensor:
        """w, float32 [n, N], of features f, float32 [n, D], not normalised."""
        read = normalize(features, dim=-1) if self.router_takes_unit else features
        scores = read @ self.adaptive_network.T
        if self.router_bias is not None:
            scores = scores + self.router_bias
        if self.router_standardised:
            weights = domain_weights(scores, self.temperature)
        else:
            weights = (scores / self.temperature).softmax(-1)
        if self.mixing == "hard":
            weights = one_hot(weights.argmax(-1), len(self.banks)).to(weights.dtype)
        return weights

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """float32 [n, C] of features f, float32 [n, D], not normalised."""
        weights = self.weights(features)
        mixed = mix_banks(normalize(features, dim=-1), weights, self.banks, self.gram)
        if self.bank_bias is not None:
            mixed = mixed + weights @ self.bank_bias
        return self.logit_scale * mixed


def single_bank(
    vectors: Tensor,
    logit_scale: float,
    bias: Tensor | None = None,
    *,
    renormalised: bool = True,
) -> Head:
    """A head with one bank for all images.

    Args:
        vectors: vectors of the classes, float32 [C, D].
        bias: float32 [C], before the logit scale.
    """
    return Head(
        banks=vectors.unsqueeze(0),
        adaptive_network=vectors.new_zeros(1, vectors.shape[1]),
        temperature=1.0,
        logit_scale=logit_scale,
        bank_bias=None if bias is None else bias.unsqueeze(0),
        renormalised=renormalised,
    )


def gram_matrices(banks: Tensor) -> Tensor:
    """G_c = T_.c T_.c', float32 [C, N, N], of text banks float32 [N, C, D]."""
    return torch.einsum("ncd,mcd->cnm", banks, banks)


def mix_banks(features: Tensor, weights: Tensor, banks: Tensor, gram: Tensor) -> Tensor:
    """Cosine of unit image features to the renormalised mixture of text banks.

    Args:
        features: unit, float32 [n, D].
        weights: float32 [n, N].
        banks: float32 [N, C, D].
        gram: float32 [C, N, N].

    Returns:
        float32 [n, C].
    """
    similarity = torch.einsum("bd,ncd->bnc", features, banks)
    mixed = torch.einsum("bn,bnc->bc", weights, similarity)
    squared = torch.einsum("bn,cnm,bm->bc", weights, gram, weights)
    return mixed / squared.clamp_min(MIN_NORM).sqrt()
