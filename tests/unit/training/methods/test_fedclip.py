"""FedCLIP against gradients derived by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, normalize

from fedapt.data.domains import Labelled
from fedapt.model.backbone import Backbone
from fedapt.training.methods import Learned
from fedapt.training.methods.fedclip import FedCLIP
from tests.support.methods import (
    NAMES,
    SCALE,
    Array,
    Arrays,
    Gradients,
    W,
    assert_logits,
    assert_round,
    assert_sizes,
    cross_entropy_by_hand,
    draw,
    make_setting,
    rows_of,
    softmax,
    to_numpy,
    unit_rows,
)

BEGUN: Learned = {
    "adapter.0.weight": 0.3 * draw(W, W, seed=1),
    "adapter.0.bias": draw(W, seed=2),
    "adapter.1.weight": draw(W, W, seed=3),
    "adapter.1.bias": draw(W, seed=4),
}


def forward_by_hand(x: Arrays, f: Array, text: Array) -> tuple[Array, Array, Array]:
    """tanh [n, D], gate [n, D], logits [n, C]."""
    hidden = np.tanh(f @ x["adapter.0.weight"].T + x["adapter.0.bias"])
    gate = softmax(hidden @ x["adapter.1.weight"].T + x["adapter.1.bias"])
    return hidden, gate, SCALE * unit_rows(gate * f) @ text.T


def by_hand(batch: Labelled, text: Array) -> Gradients:
    f = batch.features.double().numpy()

    def gradients(x: Arrays) -> tuple[float, Arrays]:
        hidden, gate, logits = forward_by_hand(x, f, text)
        loss, to_logits = cross_entropy_by_hand(logits, batch.labels.numpy())
        to_unit, length = SCALE * to_logits @ text, np.linalg.norm(gate * f, axis=1, keepdims=True)
        unit = gate * f / length
        to_gate = f * (to_unit - (to_unit * unit).sum(1, keepdims=True) * unit) / length
        to_scores = gate * (to_gate - (gate * to_gate).sum(1, keepdims=True))
        to_hidden = to_scores @ x["adapter.1.weight"] * (1 - hidden**2)
        return loss, {
            "adapter.0.weight": to_hidden.T @ f,
            "adapter.0.bias": to_hidden.sum(0),
            "adapter.1.weight": to_scores.T @ hidden,
            "adapter.1.bias": to_scores.sum(0),
        }

    return gradients


def test_a_clients_steps_and_the_aggregate() -> None:
    setting = make_setting()
    method, text = FedCLIP(setting), setting.zero_shot.double().numpy()
    assert_round(method, BEGUN, lambda client: by_hand(client.data.load(), text))


def test_the_prediction() -> None:
    setting = make_setting()
    images, method = rows_of(setting, range(9)), FedCLIP(setting)
    f, text = images.features.double().numpy(), setting.zero_shot.double().numpy()
    *_, expected = forward_by_hand(to_numpy(BEGUN), f, text)
    assert_logits(method, BEGUN, images, expected)
    assert method.routing(BEGUN, images.features) is None
    assert method.frozen() == {}


def test_it_starts_near_zero_shot_clip(tiny_backbone: Backbone) -> None:
    setting = make_setting(tiny_backbone)
    method, images = FedCLIP(setting), rows_of(setting, range(13))
    start = method.begin()
    ids = tiny_backbone.tokenizer([f"a photo of a {name}." for name in NAMES])
    text = tiny_backbone.clip.encode_text(ids, normalize=True)
    cosine = normalize(images.features, dim=-1) @ text.T
    found = method.predictor(start)(images, None) / tiny_backbone.logit_scale
    assert 0.9 < float(cosine_similarity(found.flatten(), cosine.flatten(), dim=0)) < 0.9999
    for part in start.values():
        assert 0.9 * 32**-0.5 < float(part.abs().max()) <= 32**-0.5
    assert all(torch.equal(t, start[n]) for n, t in method.begin().items())


def test_parameters_and_bytes() -> None:
    assert_sizes(FedCLIP(make_setting()), 2 * (W * W + W))
