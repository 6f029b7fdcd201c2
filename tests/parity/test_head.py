"""The head as ONNX against the head in torch, over numbers of domains, batches and temperatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from fedapt.model.adaptive_network import domain_weights
from fedapt.model.head import Head, gram_matrices, mix_banks, single_bank
from fedapt.onnx.weights import open_model
from fedapt_export.head import build_head

WIDTH, N_CLASSES = 16, 7


@dataclass(frozen=True)
class Case:
    n_domains: int
    temperature: float

    def head(self) -> Head:
        generator = torch.Generator().manual_seed(self.n_domains)
        banks = torch.randn(self.n_domains, N_CLASSES, WIDTH, generator=generator)
        network = torch.randn(self.n_domains, WIDTH, generator=generator)
        return Head(normalize(banks, dim=-1), network, self.temperature, 20.0)


def run_onnx(head: Head, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    session = open_model(build_head(head), "cpu", "head")
    logits, weights = session.run(["logits", "domain_weights"], {"features": features.numpy()})
    return torch.from_numpy(logits), torch.from_numpy(weights)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("n_domains", [1, 2, 4])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_onnx_computes_what_torch_computes(n_domains: int, temperature: float, batch: int) -> None:
    head = Case(n_domains, temperature).head()
    features = 3 * torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(batch))
    logits, weights = run_onnx(head, features)
    expected = domain_weights(features @ head.adaptive_network.T, temperature)
    unit = normalize(features, dim=-1)
    mixed = head.logit_scale * mix_banks(unit, expected, head.banks, gram_matrices(head.banks))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, mixed, rtol=0, atol=1e-4)


def test_equal_scores_give_uniform_weights() -> None:
    head = Head(Case(4, 0.01).head().banks, torch.zeros(4, WIDTH), 0.01, 20.0)
    _, weights = run_onnx(head, torch.ones(3, WIDTH))
    torch.testing.assert_close(weights, torch.full((3, 4), 0.25))


def test_an_image_without_any_feature_gives_numbers() -> None:
    logits, weights = run_onnx(Case(4, 0.01).head(), torch.zeros(2, WIDTH))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2))


def test_a_soft_mixture_is_renormalised() -> None:
    # two orthogonal bank vectors mixed half and half: cosine 1/sqrt(2) to each, never 1/2
    banks = torch.zeros(2, 1, WIDTH)
    banks[0, 0, 0] = banks[1, 0, 1] = 1
    features = torch.zeros(1, WIDTH)
    features[0, 0] = 5
    logits, _ = run_onnx(Head(banks, torch.zeros(2, WIDTH), 1.0, 1.0), features)
    assert np.isclose(float(logits), 2**-0.5, atol=1e-6)


# heads that are not FedAPT's


def linear_head(n_banks: int, **changes: Any) -> Head:
    generator = torch.Generator().manual_seed(11)
    return Head(
        banks=torch.randn(n_banks, N_CLASSES, WIDTH, generator=generator),
        adaptive_network=torch.randn(n_banks, WIDTH, generator=generator),
        temperature=0.4,
        logit_scale=3.0,
        bank_bias=torch.randn(n_banks, N_CLASSES, generator=generator),
        router_bias=torch.randn(n_banks, generator=generator),
        renormalised=False,
        router_takes_unit=True,
        router_standardised=False,
        **changes,
    )


@pytest.mark.parametrize("mixing", ["exact", "hard"])
@pytest.mark.parametrize("n_banks", [1, 2, 5])
def test_a_linear_head_is_a_gated_sum_of_affine_scores(n_banks: int, mixing: str) -> None:
    head = linear_head(n_banks, mixing=mixing)
    features = 3 * torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))
    logits, weights = run_onnx(head, features)
    # by hand, image by image, in float64
    for f, row, weight in zip(features.double().numpy(), logits, weights, strict=True):
        unit = f / np.linalg.norm(f)
        z = head.adaptive_network.double().numpy() @ unit + head.router_bias.double().numpy()
        powers = np.exp((z - z.max()) / 0.4)
        w = powers / powers.sum()
        if mixing == "hard":
            w = np.eye(n_banks)[z.argmax()]
        scores = head.banks.double().numpy() @ unit + head.bank_bias.double().numpy()
        np.testing.assert_allclose(weight, w, rtol=0, atol=1e-5)
        np.testing.assert_allclose(row, 3.0 * (w @ scores), rtol=0, atol=1e-4)
    torch.testing.assert_close(head.weights(features), weights, rtol=0, atol=1e-5)
    torch.testing.assert_close(head.logits(features), logits, rtol=0, atol=1e-4)


def test_a_linear_mixture_is_not_renormalised() -> None:
    banks = torch.zeros(2, 1, WIDTH)
    banks[0, 0, 0], banks[1, 0, 1] = 4, 4
    features = torch.zeros(1, WIDTH)
    features[0, 0] = 5
    head = Head(banks, torch.zeros(2, WIDTH), 1.0, 1.0, renormalised=False)
    logits, _ = run_onnx(head, features)
    assert float(logits) == pytest.approx(2.0)  # half of 4, and no length to divide by


def test_one_bank_takes_every_image() -> None:
    vectors = torch.randn(N_CLASSES, WIDTH, generator=torch.Generator().manual_seed(2))
    bias = torch.arange(N_CLASSES).float()
    head = single_bank(vectors, 2.0, bias, renormalised=False)
    features = torch.ones(2, WIDTH)
    logits, weights = run_onnx(head, features)
    assert weights.tolist() == [[1.0], [1.0]]
    expected = 2.0 * (vectors.sum(1) / WIDTH**0.5 + bias)
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-4)
