"""Analytic federated learning: clients send sums over their features, the server solves.

    client     A_n = sum x x',  B_n = sum x y'                        once; see `fedapt.model.ridge`
    analytic   logits = s x' W_0
    adaptive   w = softmax([x' R, theta] / T),  logits = s x' (sum_d w_d W_d + w_pooled W_0)

Training takes one round and has no learning rate. The result does not depend on the distribution of
images over clients. The adaptive form weights the ridge solutions of the domains as FedAPT weights
its prompts. The pooled solution is one more bank with the constant score theta. It answers images
for which no domain's score is higher. Every client takes part in the round.

An upload reveals the second moments of a client's features. They reveal little about a single image
among many, and nearly everything if the client has few images. Secure aggregation hides the sums of
single clients (pooled form only, because the adaptive form needs a sum for each domain). Noise of
the nodes hides the sums in both forms.

Source: AFL (arXiv 2405.16240); the gated form is fedapt's own.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fedapt.core.config import Config
from fedapt.data.partition import Client
from fedapt.model.head import Head, single_bank
from fedapt.model.ridge import (
    CONSTANT,
    Sums,
    pack,
    solve,
    solve_router,
    sum_images,
    unpack,
)
from fedapt.training.methods.base import (
    ALL_DOMAINS,
    Fusable,
    Learned,
    Method,
    Objective,
    Predictor,
    replace_train,
)

GRAM, TARGETS = "gram", "targets"
POOLED = "pooled"  # the name of the bank that answers images of no known domain

# chosen on validation images of two data sets, in-domain and with a domain left out
PENALTY, DOMAIN_PENALTY, ROUTER_PENALTY = 2.0, 0.5, 0.3
PRIOR = 3.0  # factor of the text encoder's class vectors in P
TEMPERATURE, POOLED_SCORE = 0.1, 0.8
LOGIT_SCALE = 8.0


class Analytic(Method):
    """Learned: A as its upper triangle float32 [(D + 1)(D + 2) / 2], B float32 [D + 1, C]."""

    title = "analytic"
    source = "arXiv 2405.16240"
    adds_up = True

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """One round of every client, weighted by its number of images."""
        federation = dataclasses.replace(config.federation, sampled=0, sampled_per_domain=0)
        config = dataclasses.replace(config, federation=federation)
        return replace_train(config, rounds=1, weighting="uniform", schedule="constant")

    def begin(self) -> Learned:
        """Sums over no images."""
        width = self.setting.backbone.joint_width + 1
        device = self.setting.backbone.device
        return {
            GRAM: torch.zeros(width * (width + 1) // 2, device=device),
            TARGETS: torch.zeros(width, len(self.setting.class_names), device=device),
        }

    def add_up(self, client: Client) -> Learned:
        """A client's sums."""
        images = client.data.load()
        return write_sums(sum_images(images.features, images.labels, len(self.setting.class_names)))

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """Not supported: no step trains anything."""
        raise NotImplementedError

    @property
    def step_bytes(self) -> int:
        """No step encodes a prompt."""
        return 0

    def predictor(self, learned: Learned) -> Predictor:
        """The solved head's logits."""
        head = self.head(learned)
        return lambda images, domain: head.logits(images.features)

    def bank_names(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """One bank."""
        return ALL_DOMAINS

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """Solutions as banks of vectors without unit length."""
        head = self.head(learned)
        return Fusable(head, self.bank_names(keys), head.logits)

    @torch.inference_mode()
    def head(self, learned: Learned) -> Head:
        """The solution of all sums together."""
        vectors, bias = split_solution(self._solve_pooled(self.read_sums(learned)))
        return single_bank(vectors, LOGIT_SCALE, bias, renormalised=False)

    def read_sums(self, learned: Learned) -> list[Sums]:
        """The sums, of all clients together."""
        return [read_sums(learned[GRAM], learned[TARGETS])]

    def _solve_pooled(self, sums: list[Sums]) -> Tensor:
        """W_0, float64 [D + 1, C], pulled toward the text encoder's class vectors."""
        text = self.setting.zero_shot.double()
        pull = torch.zeros_like(sums[0].targets)
        pull[:-1] = PRIOR * (text - text.mean(0)).T
        total = sums[0]
        for part in sums[1:]:
            total = total + part
        return solve(total, PENALTY, pull)


class AdaptiveAnalytic(Analytic):
    """Learned: A float32 [N, (D + 1)(D + 2) / 2] and B float32 [N, D + 1, C], of every key."""

    title = "adaptive analytic"
    owned = {GRAM: "key", TARGETS: "key"}

    def begin(self) -> Learned:
        """Sums over no images, for every key."""
        n_keys = self.setting.n_keys
        return {name: t.expand(n_keys, *t.shape).clone() for name, t in super().begin().items()}

    def routing(self, learned: Learned, features: Tensor) -> Tensor:
        """w, float32 [n, N + 1]; the last is the pooled solution's."""
        return self.head(learned).weights(features)

    def bank_names(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the keys, and that of the pooled bank."""
        return (*keys, POOLED)

    def read_sums(self, learned: Learned) -> list[Sums]:
        """The sums of each key."""
        return [read_sums(*pair) for pair in zip(learned[GRAM], learned[TARGETS], strict=True)]

    @torch.inference_mode()
    def head(self, learned: Learned) -> Head:
        """A bank for each key's solution, then the pooled one."""
        sums = self.read_sums(learned)
        pooled = self._solve_pooled(sums)
        solutions = [solve(part, DOMAIN_PENALTY, pooled) for part in sums]
        banks, biases = zip(*map(split_solution, [*solutions, pooled]), strict=True)
        network, network_bias = split_solution(solve_router(sums, ROUTER_PENALTY))
        return Head(
            banks=torch.stack(banks),
            adaptive_network=torch.cat([network, network.new_zeros(1, network.shape[1])]),
            temperature=TEMPERATURE,
            logit_scale=LOGIT_SCALE,
            bank_bias=torch.stack(biases),
            router_bias=torch.cat([network_bias, network_bias.new_tensor([POOLED_SCORE])]),
            renormalised=False,
            router_takes_unit=True,
            router_standardised=False,
        )

    @torch.inference_mode()
    def alone(self, learned: Learned, key: int) -> Head:
        """Classifier of one key's party alone: ridge regression on its own sums."""
        vectors, bias = split_solution(self._solve_pooled([self.read_sums(learned)[key]]))
        return single_bank(vectors, LOGIT_SCALE, bias, renormalised=False)


def write_sums(sums: Sums) -> Learned:
    """Sums as they are sent and stored, float32."""
    return {GRAM: pack(sums.gram).float(), TARGETS: sums.targets.float()}


def read_sums(gram: Tensor, targets: Tensor) -> Sums:
    """Sums as they are solved, float64."""
    return Sums(unpack(gram.double()), targets.double())


def split_solution(solution: Tensor) -> tuple[Tensor, Tensor]:
    """float64 [D + 1, C] -> vectors float32 [C, D] and bias float32 [C]."""
    return solution[:-1].T.float().contiguous(), (CONSTANT * solution[-1]).float()
