"""FedAPT without labels: pseudo-labels of zero-shot CLIP, then agreement with the neighbours.

    warm-up   CE(logits of a strongly augmented view, zero-shot label where its confidence > 0.75)
    then      -b_i . log p_i  +  mean_j KL(b_j || p_i) over the 5 nearest images j
              + 0.5 mean_{i != k} p_i . p_k
    always    + CE(Q f, n)

p is the client's prediction. b is the score bank: the predictions of the aggregate under the
client's key at the start of the round. The authors keep a client's bank from round to round. Here
it is computed again in each round, so a client has no state. Training reads no labels.

The paper requires a context of 16 tokens shared by all classes, and 4 rounds after the warm-up (20
with several clients per domain). This method trains on the training images; the authors'
script trains on test images. The paper's batch size is 512 (`train.batch_size`).

Source: FedAPT (arXiv 2211.07864), section on unsupervised training; strong views after FixMatch
(arXiv 2001.07685).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize

from fedapt.core.config import Config
from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.training.methods.base import (
    Learned,
    Objective,
    Setting,
    replace_prompt,
    replace_train,
)
from fedapt.training.methods.fedapt import FedAPT

CONTEXT_LENGTH = 16
LR = 0.1  # the maximum that benchmarks/unsupervised.py has measured
ROUNDS, ROUNDS_OF_MANY_CLIENTS = 4, 20
_BLOCK = 1024  # rows of a similarity matrix at a time


class UnsupervisedFedAPT(FedAPT):
    """Learned: V float32 [M, W] and Q float32 [N, D], as of FedAPT."""

    title = "FedAPT unsupervised"
    reads_labels = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._neighbours: dict[int, Tensor] = {}  # by client: the features never change

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """A shared context of 16, the paper's rounds, and a learning rate of `LR` at most."""
        several = config.federation.clients_per_domain > 1
        most = config.unsupervised.warm_up_rounds + (ROUNDS_OF_MANY_CLIENTS if several else ROUNDS)
        length = min(config.prompt.context_length, CONTEXT_LENGTH)
        config = replace_prompt(config, class_specific=False, context_length=length)
        train = config.train
        return replace_train(config, rounds=min(train.rounds, most), lr=min(train.lr, LR))

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """The loss of the warm-up, or of the rounds after it."""
        if round_number < self.setting.config.unsupervised.warm_up_rounds:
            return self._warm_up(client, round_number)
        return self._agreement(start, client)

    def _warm_up(self, client: Client, round_number: int) -> Objective:
        settings = self.setting.config.unsupervised
        assert self.setting.views is not None  # a client trains here
        views = self.setting.views(client.data, round_number % settings.views)

        def loss(learned: Learned, batch: Labelled) -> Tensor:
            probability, label = self._zero_shot(batch.features).max(-1)
            sure = probability > settings.confidence
            total = self.domain_loss(learned, client.key, batch.features)
            if sure.any():
                seen = views[_places(client, batch)][sure]
                logits = self.client_logits(learned, client.key, seen)
                total = total + cross_entropy(logits, label[sure])
            return total

        return loss

    @torch.no_grad()
    def _zero_shot(self, features: Tensor) -> Tensor:
        logits = normalize(features, dim=-1) @ self.setting.zero_shot.T
        return (self.setting.backbone.logit_scale * logits).softmax(-1)

    def _agreement(self, start: Learned, client: Client) -> Objective:
        settings = self.setting.config.unsupervised
        images = client.data.load()
        with torch.no_grad():
            bank = self.client_logits(start, client.key, images.features).softmax(-1)
        if client.index not in self._neighbours:
            self._neighbours[client.index] = find_neighbours(images.features, settings.neighbours)
        neighbours = self._neighbours[client.index]

        def loss(learned: Learned, batch: Labelled) -> Tensor:
            places = _places(client, batch)
            logits = self.client_logits(learned, client.key, batch.features)
            return agreement_loss(
                logits, bank[places], bank[neighbours[places]], settings.dispersion
            ) + self.domain_loss(learned, client.key, batch.features)

        return loss


def agreement_loss(logits: Tensor, own: Tensor, nearest: Tensor, dispersion: float) -> Tensor:
    """Soft CE to the bank + KL to the neighbours + dispersion, a scalar.

    Args:
        logits: float32 [n, C].
        own: score bank of these images, float32 [n, C].
        nearest: score bank of their neighbours, float32 [n, K, C].
        dispersion: weight of the mean product of the predictions of two different images.
    """
    log_p = log_softmax(logits, dim=-1)
    soft = -(own * log_p).sum(-1).mean()
    entropy = torch.special.entr(nearest).sum(-1).mean()
    # a single image has no neighbours
    near = -(nearest * log_p.unsqueeze(1)).sum(-1).mean() - entropy if nearest.shape[1] else 0.0
    p, n = log_p.exp(), len(logits)
    # the sum over all pairs of p_i . p_k, less the diagonal
    products = p.sum(0).square().sum() - p.square().sum()
    return soft + near + dispersion * products / max(1, n * (n - 1))


def find_neighbours(features: Tensor, count: int) -> Tensor:
    """Indices int64 [n, K] of each image's nearest others by cosine; K = min(count, n - 1)."""
    unit = normalize(features, dim=-1)
    n = len(unit)
    found = [torch.empty(0, min(count, n - 1), dtype=torch.int64, device=unit.device)]
    for start in range(0, n, _BLOCK):
        similarity = unit[start : start + _BLOCK] @ unit.T
        rows = torch.arange(len(similarity), device=unit.device)
        similarity[rows, start + rows] = -torch.inf
        found.append(similarity.topk(min(count, n - 1), dim=-1).indices)
    return torch.cat(found)


def _places(client: Client, batch: Labelled) -> Tensor:
    """Indices of a batch's images among the client's; a split file may list them in any order."""
    rows, order = client.data.rows.sort()
    return order[torch.searchsorted(rows, batch.rows)]
