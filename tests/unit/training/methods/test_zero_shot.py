"""Zero-shot CLIP: OpenCLIP's own logits, and no rounds."""

from __future__ import annotations

import torch

from fedapt.model.backbone import Backbone
from fedapt.training.methods.base import n_bytes, n_parameters
from fedapt.training.methods.zero_shot import ZeroShot
from tests.support.methods import NAMES, make_setting, one_round, rows_of


def test_the_prediction_is_open_clips(tiny_backbone: Backbone) -> None:
    setting = make_setting(tiny_backbone)
    images = rows_of(setting, range(13))
    ids = tiny_backbone.tokenizer([f"a photo of a {name}." for name in NAMES])
    text = tiny_backbone.clip.encode_text(ids, normalize=True)
    unit = images.features / images.features.norm(dim=-1, keepdim=True)
    method = ZeroShot(setting)
    for domain in (0, None):
        found = method.predictor(method.begin())(images, domain)
        expected = tiny_backbone.logit_scale * unit @ text.T
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert method.routing({}, images.features) is None
    assert method.frozen() == {}


def test_there_is_nothing_to_train(tiny_backbone: Backbone) -> None:
    method = ZeroShot(make_setting(tiny_backbone))
    assert method.begin() == {}
    assert (n_parameters({}), n_bytes({})) == (0, 0)
    progress = one_round(method, {})
    assert (progress.learned, progress.rounds, progress.records) == ({}, 0, ())
    assert progress.best_round is None
