"""CoCoOp, federated: a shared context shifted by a small network of the image feature.

    logits_i = exp(s) f^_i . t(V + h(f^_i));   h = W2 relu(W1 f^ + b1) + b2,  D -> D/16 -> W

Every image has its own prompts, so a step encodes C prompts for each image. The context of an image
is encoded once for all classes.

The paper requires a context that all classes share, initialised with "a photo of a", and steps with
one image, because of memory. A step is expensive, so a client takes one step of 32 images in a
round here. `train.images_per_round` changes this.

Source: CoCoOp (arXiv 2203.05557).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize, relu
from torch.utils.checkpoint import checkpoint

from fedapt.core.config import Config
from fedapt.core.seeds import child_seed
from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.model.prompted_clip import PromptedText
from fedapt.training.methods.base import (
    Learned,
    Method,
    Objective,
    Predictor,
    replace_prompt,
    replace_train,
)
from fedapt.training.methods.fedclip import draw_linear
from fedapt.training.methods.promptfl import CONTEXT, begin_context

START, CONTEXT_LENGTH = "a photo of a", 4
IMAGES_PER_ROUND, BATCH_SIZE = 32, 32
_REDUCTION = 16
_MAX_PROMPTS = 512


class CoCoOp(Method):
    """Learned: V float32 [M, W], and W1 [D/16, D], b1, W2 [W, D/16], b2."""

    title = "CoCoOp"
    source = "arXiv 2203.05557"
    not_fused = "every image has its own prompts, so no bank of text features replaces them"

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """The paper's context, and few images a round."""
        train = config.train
        config = replace_prompt(
            config, class_specific=False, context_length=CONTEXT_LENGTH, start=START
        )
        return replace_train(
            config,
            images_per_round=train.images_per_round or IMAGES_PER_ROUND,
            batch_size=min(train.batch_size, BATCH_SIZE),
        )

    @property
    def step_bytes(self) -> int:
        """Memory of the images whose prompts are encoded together."""
        return self.setting.prompts_bytes * self._images_at_once

    @property
    def _images_at_once(self) -> int:
        return max(1, _MAX_PROMPTS // len(self.setting.class_names))

    def begin(self) -> Learned:
        """V of the phrase; the network as torch's Linear starts."""
        s = self.setting
        width, joint = s.backbone.text_tower.width, s.backbone.joint_width
        generator = torch.Generator().manual_seed(child_seed(s.config.train.seed, "cocoop network"))
        hidden = max(1, joint // _REDUCTION)
        network = draw_linear("meta_net.0", joint, hidden, generator) | draw_linear(
            "meta_net.1", hidden, width, generator
        )
        return {CONTEXT: begin_context(s)} | {
            n: t.to(s.backbone.device) for n, t in network.items()
        }

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class."""

        def loss(learned: Learned, batch: Labelled) -> Tensor:
            logits = self._logits(self.setting.training_text, learned, batch.features)
            return cross_entropy(logits, batch.labels)

        return loss

    def predictor(self, learned: Learned) -> Predictor:
        """Every image under its own prompts."""

        @torch.inference_mode()
        def predict(images: Labelled, domain: int | None) -> Tensor:
            return self._logits(self.setting.text, learned, images.features)

        return predict

    def _logits(self, text: PromptedText, learned: Learned, features: Tensor) -> Tensor:
        """float32 [n, C], a few images at a time."""
        parts = torch.split(features, self._images_at_once)
        if len(parts) > 1 and torch.is_grad_enabled():
            # encoded again in the backward pass, which saves the memory of all prompts
            rows = [checkpoint(self._part, text, learned, p, use_reentrant=False) for p in parts]
        else:
            rows = [self._part(text, learned, part) for part in parts]
        return torch.cat(rows)

    def _part(self, text: PromptedText, learned: Learned, features: Tensor) -> Tensor:
        unit = normalize(features, dim=-1)
        hidden = relu(linear(unit, learned["meta_net.0.weight"], learned["meta_net.0.bias"]))
        shift = linear(hidden, learned["meta_net.1.weight"], learned["meta_net.1.bias"])
        prompts = learned[CONTEXT] + shift.unsqueeze(1)  # [n, M, W]
        cosine = torch.einsum("nd,ncd->nc", unit, text(prompts.unsqueeze(1)))
        return self.setting.backbone.logit_scale * cosine
