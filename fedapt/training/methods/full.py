"""Full fine-tuning by FedAvg: all weights of the image tower; the text features stay fixed.

    logits = exp(s) normalise(image_encoder(x)) . t("a photo of a ...");   loss = CE(logits, class)

It changes the image tower, so it cannot use cached features: every step decodes images and runs the
tower forward and backward. Statistics of BatchNorm stay those of pretraining, because averaged
statistics of different domains fit none of them.

Steps are expensive, so a client takes 32 images in a round and a run has 5 rounds at most. Another
`train.images_per_round` removes both limits.

Source: FedAvg (arXiv 1602.05629).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedapt.core.config import Config
from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.model.head import single_bank
from fedapt.model.image_tower import image_tower
from fedapt.training.methods.base import (
    ALL_DOMAINS,
    Fusable,
    Learned,
    Method,
    Objective,
    Predictor,
    Setting,
    replace_train,
    text_logits,
)
from fedapt_runtime.machine import decode_threads
from fedapt_runtime.pipeline import decode_ahead

ROUNDS, IMAGES_PER_ROUND, BATCH_SIZE = 5, 32, 32
LR = 0.01  # larger steps destroy pretrained weights
_TOWER = "clip.visual."


class FullFineTuning(Method):
    """Learned: every parameter of the image tower, by its name in OpenCLIP."""

    title = "full fine-tuning"
    source = "arXiv 1602.05629"
    side_by_side = False  # a client's steps use all cores, and all clients share one module

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._tower: nn.Module = image_tower(setting.backbone)

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """Few images and rounds, small steps, and batches that fit into memory with activations."""
        train = config.train
        # a resumed run has resolved settings
        limited = train.images_per_round in (0, IMAGES_PER_ROUND)
        return replace_train(
            config,
            rounds=min(train.rounds, ROUNDS) if limited else train.rounds,
            images_per_round=train.images_per_round or IMAGES_PER_ROUND,
            lr=min(train.lr, LR),
            batch_size=min(train.batch_size, BATCH_SIZE),
        )

    def begin(self) -> Learned:
        """The pretrained weights."""
        return {
            name.removeprefix(_TOWER): parameter.detach().clone()
            for name, parameter in self._tower.named_parameters()
            if name.startswith(_TOWER)
        }

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class."""

        def loss(learned: Learned, batch: Labelled) -> Tensor:
            device = self.setting.backbone.device.type
            half = self.setting.dtype != torch.float32
            with torch.autocast(device, self.setting.dtype if half else None, enabled=half):
                features = self._encode(learned, batch.rows.tolist())
            logits = text_logits(self.setting, features.float(), self.setting.zero_shot)
            return cross_entropy(logits, batch.labels)

        return loss

    def predictor(self, learned: Learned) -> Predictor:
        """Logits of the fine-tuned tower."""

        @torch.inference_mode()
        def predict(images: Labelled, domain: int | None) -> Tensor:
            parts = torch.split(images.rows, BATCH_SIZE)
            features = torch.cat([self._encode(learned, part.tolist()) for part in parts])
            return text_logits(self.setting, features, self.setting.zero_shot)

        return predict

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """A tower of its own, and one bank of fixed text features."""
        s = self.setting
        tower = copy.deepcopy(self._tower)
        tower.load_state_dict({_TOWER + name: t for name, t in learned.items()}, strict=False)
        return Fusable(
            single_bank(s.zero_shot, s.backbone.logit_scale),
            ALL_DOMAINS,
            lambda features: text_logits(s, features, s.zero_shot),
            tower.eval(),
        )

    def _encode(self, learned: Learned, rows: Sequence[int]) -> Tensor:
        """Features float32 [n, D] of images by their rows, float32 weights."""
        preprocessing = self.setting.backbone.preprocessing
        assert self.setting.table is not None  # without images, nothing is encoded
        paths = [self.setting.table.paths[row] for row in rows]
        decoded = decode_ahead(paths, preprocessing, decode_threads(), len(paths) + 1)
        pixels = np.empty((len(paths), *preprocessing.size, 3), dtype=np.uint8)
        for i, item in enumerate(decoded):
            if item.error is not None:
                raise item.error  # the file was readable when its feature was computed
            assert item.pixels is not None  # one of the two
            pixels[i] = item.pixels
        images = torch.from_numpy(pixels).to(self.setting.backbone.device)
        weights = {_TOWER + name: tensor for name, tensor in learned.items()}
        features: Tensor = functional_call(self._tower, weights, (images,))
        return features
