"""FedAPT: a meta prompt, an adaptive network, and a frozen random key for each domain.

    client n   logits = exp(s) f^ . t(one-hot n);   loss = CE(logits, class) + CE(Q f, n)
    server     w = softmax(standardised Q f / tau);  logits = exp(s) f^ . t(w)

Source: FedAPT (arXiv 2211.07864).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedapt.core.names import ADAPTIVE_NETWORK, KEYS, META_PROMPT
from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.model.adaptive_network import draw_adaptive_network
from fedapt.model.prompted_clip import GlobalModel
from fedapt.training.methods.base import (
    Fusable,
    Learned,
    Method,
    Objective,
    Predictor,
    Setting,
    text_logits,
)
from fedapt.training.methods.promptfl import begin_context


class FedAPT(Method):
    """Learned: V float32 [C, M, W] or [M, W], and Q float32 [N, D]."""

    title = "FedAPT"
    source = "arXiv 2211.07864"

    def begin(self) -> Learned:
        """V and Q before the first round."""
        s = self.setting
        network = draw_adaptive_network(s.n_keys, s.backbone.joint_width, s.config.train.seed)
        return {META_PROMPT: begin_context(s), ADAPTIVE_NETWORK: network.to(s.backbone.device)}

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class under the client's key, CE of its domain, and CE under the mean key."""
        share = self.setting.config.prompt.mean_key_loss

        def loss(learned: Learned, batch: Labelled) -> Tensor:
            logits = self.client_logits(learned, client.key, batch.features)
            total = cross_entropy(logits, batch.labels) + self.domain_loss(
                learned, client.key, batch.features
            )
            if share:
                generic = self.prompt_logits(learned, self.setting.keys.mean(0), batch.features)
                total = total + share * cross_entropy(generic, batch.labels)
            return total

        return loss

    def client_logits(self, learned: Learned, key: int, features: Tensor) -> Tensor:
        """Class logits float32 [n, C] of features float32 [n, D] under one key alone."""
        # personalise() with a one-hot w
        return self.prompt_logits(learned, self.setting.keys[key], features)

    def prompt_logits(self, learned: Learned, key: Tensor, features: Tensor) -> Tensor:
        """Class logits float32 [n, C] under a key float32 [M, W], or a mixture of keys."""
        prompt = learned[META_PROMPT] * (1 + key)
        return text_logits(self.setting, features, self.setting.training_text(prompt))

    def domain_loss(self, learned: Learned, key: int, features: Tensor) -> Tensor:
        """CE(Q f, n)."""
        return network_loss(learned[ADAPTIVE_NETWORK], key, features)

    def predictor(self, learned: Learned) -> Predictor:
        """Mixed text banks, as the fused graph computes them."""
        head = self.global_model(learned).head
        return lambda images, domain: head.logits(images.features)

    def routing(self, learned: Learned, features: Tensor) -> Tensor:
        """w, float32 [n, N]."""
        return self.global_model(learned).weights(features)

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """Text banks of the keys; the exact logits are those of each image's own prompts."""
        model = self.global_model(learned)
        return Fusable(model.head, keys, model.exact_logits)

    def frozen(self) -> dict[str, Tensor]:
        """The keys E, float32 [N, M, W]."""
        return {KEYS: self.setting.keys}

    def global_model(self, learned: Learned) -> GlobalModel:
        """The server's model around V and Q."""
        return build_global_model(self.setting, learned)


def network_loss(network: Tensor, key: int, features: Tensor) -> Tensor:
    """CE(Q f, n), a scalar: Q, float32 [N, D], should assign these features to key n."""
    scores = features @ network.T
    return cross_entropy(scores, torch.full((len(features),), key, device=features.device))


def build_global_model(setting: Setting, learned: Learned) -> GlobalModel:
    """The server's model of a run."""
    return GlobalModel(
        text=setting.text,
        context=learned[META_PROMPT],
        adaptive_network=learned[ADAPTIVE_NETWORK],
        keys=setting.keys,
        temperature=setting.config.prompt.temperature,
        logit_scale=setting.backbone.logit_scale,
    )
