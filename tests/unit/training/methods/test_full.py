"""Full fine-tuning against plain torch on a copy of the tower and OpenCLIP's own transform."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from fedapt.core.config import Config
from fedapt.data.domains import Labelled
from fedapt.model.backbone import Backbone, hash_tensors, load_backbone
from fedapt.model.open_clip_import import import_open_clip
from fedapt.training.client import ClientUpdate
from fedapt.training.methods import Learned, Setting
from fedapt.training.methods.base import n_bytes, n_parameters
from fedapt.training.methods.full import FullFineTuning
from fedapt_runtime.errors import ImageError
from tests.support.methods import NAMES, make_config, make_setting, one_round, rows_of, train_one

SIZES = (6, 4)
TRAIN = {"train.lr": 0.02, "train.local_epochs": 2, "train.momentum": 0.9}


@pytest.fixture(scope="module")
def res_net(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny ResNet CLIP, whose BatchNorm has statistics of its own."""
    folder = tmp_path_factory.mktemp("clip") / "res_net"
    folder.mkdir()
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
            "text_cfg": {"context_length": 77, "width": 32, "heads": 2, "layers": 1},
        },
        "preprocess_cfg": {"size": 64, "interpolation": "bilinear", "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = import_open_clip().CLIP(**config["model_cfg"])
        for module in clip.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.data.uniform_(0.5, 1.5)
    save_file(dict(clip.state_dict()), str(folder / "open_clip_model.safetensors"))
    return load_backbone(str(folder))


@pytest.fixture(params=["tiny_backbone", "res_net"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    found: Backbone = request.getfixturevalue(request.param)
    return found


def make_full(backbone: Backbone, images: Path, **settings: Any) -> Setting:
    config = FullFineTuning.resolve(make_config(TRAIN | settings))
    paths = sorted(images.glob("*/*/*.png"))[::4]
    labels = torch.tensor([i % 3 for i in range(len(paths))])
    return make_setting(backbone, SIZES, config=config, paths=paths, labels=labels)


def pixels_of(backbone: Backbone, setting: Setting, rows: Tensor) -> Tensor:
    """Through OpenCLIP's own evaluation transform, float32 [n, 3, 64, 64]."""
    open_clip = import_open_clip()
    config = open_clip.transform.PreprocessCfg(**backbone.clip.visual.preprocess_cfg)
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    images = [Image.open(setting.table.paths[row]) for row in rows.tolist()]
    return torch.stack([transform(image) for image in images])


def zero_shot_of(backbone: Backbone) -> Tensor:
    ids = backbone.tokenizer([f"a photo of a {name}." for name in NAMES])
    text: Tensor = backbone.clip.encode_text(ids, normalize=True)
    return text


def train_copy(setting: Setting, batch: Labelled) -> nn.Module:
    """Plain torch: a copy of the CLIP, its image tower trained by torch's SGD."""
    backbone, train = setting.backbone, setting.config.train
    clip: Any = copy.deepcopy(backbone.clip)
    clip.visual.requires_grad_(True)
    sgd = torch.optim.SGD(
        clip.visual.parameters(),
        lr=train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
    )
    pixels, text = pixels_of(backbone, setting, batch.rows), zero_shot_of(backbone)
    for _ in range(train.local_epochs):
        sgd.zero_grad()
        unit = normalize(clip.encode_image(pixels), dim=-1)
        cross_entropy(backbone.logit_scale * unit @ text.T, batch.labels).backward()
        sgd.step()
    found: nn.Module = clip.visual
    return found


def reply(setting: Setting, client: int = 0) -> tuple[Learned, ClientUpdate]:
    method = FullFineTuning(setting)
    start = method.begin()
    return start, train_one(method, start, setting.clients[client])


def test_a_clients_steps(backbone: Backbone, tiny_images: Path) -> None:
    setting = make_full(backbone, tiny_images)
    start, update = reply(setting)
    expected = dict(train_copy(setting, setting.clients[0].data.load()).named_parameters())
    assert update.learned.keys() == expected.keys() == start.keys()
    for name, value in update.learned.items():
        torch.testing.assert_close(value, expected[name].detach(), rtol=1e-4, atol=2e-6)
    moved = torch.cat([(update.learned[n] - start[n]).abs().flatten() for n in start])
    assert float((moved > 1e-5).double().mean()) > 0.9
    assert update.n_samples == len(setting.clients[0].data)


def test_the_shared_tower_is_untouched(backbone: Backbone, tiny_images: Path) -> None:
    before = hash_tensors(backbone.clip.state_dict().items())
    setting = make_full(backbone, tiny_images)
    method = FullFineTuning(setting)
    learned = one_round(method, method.begin()).learned
    method.predictor(learned)(rows_of(setting, [0, 1]), None)
    # weights and statistics of BatchNorm alike
    assert hash_tensors(backbone.clip.state_dict().items()) == before
    assert not any(p.requires_grad or p.grad is not None for p in backbone.clip.parameters())
    assert not backbone.clip.training
    assert not any("running" in name for name in learned)


def test_there_is_a_batch_norm(res_net: Backbone) -> None:
    assert any("running_mean" in name for name, _ in res_net.clip.visual.named_buffers())


def test_it_begins_with_the_pretrained_weights(backbone: Backbone, tiny_images: Path) -> None:
    start = FullFineTuning(make_full(backbone, tiny_images)).begin()
    visual = dict(backbone.clip.visual.named_parameters())
    assert start.keys() == visual.keys()
    for name, value in start.items():
        assert torch.equal(value, visual[name])
        assert value.data_ptr() != visual[name].data_ptr()


def test_the_aggregate_is_the_mean_of_the_clients(
    tiny_backbone: Backbone, tiny_images: Path
) -> None:
    setting = make_full(tiny_backbone, tiny_images)
    towers = [train_copy(setting, c.data.load()) for c in setting.clients]
    method = FullFineTuning(setting)
    found = one_round(method, method.begin()).learned
    for (name, a), b in zip(towers[0].named_parameters(), towers[1].parameters(), strict=True):
        mean = (a.detach() + b.detach()) / 2
        torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=2e-6)


def test_the_prediction(backbone: Backbone, tiny_images: Path) -> None:
    setting = make_full(backbone, tiny_images)
    _, update = reply(setting)
    clip: Any = copy.deepcopy(backbone.clip)
    clip.visual.load_state_dict(dict(clip.visual.state_dict()) | update.learned)
    rows = torch.tensor([3, 0, 7])
    unit = normalize(clip.encode_image(pixels_of(backbone, setting, rows)), dim=-1)
    expected = backbone.logit_scale * unit @ zero_shot_of(backbone).T
    method = FullFineTuning(setting)
    for domain in (0, None):
        found = method.predictor(update.learned)(rows_of(setting, rows.tolist()), domain)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    untrained = method.predictor(method.begin())(rows_of(setting, rows.tolist()), None)
    assert float((untrained - expected).abs().max()) > 1e-2
    assert method.routing(update.learned, torch.zeros(2, 16)) is None


def test_many_images_are_predicted_in_batches(tiny_backbone: Backbone, tiny_images: Path) -> None:
    setting = make_full(tiny_backbone, tiny_images)
    method = FullFineTuning(setting)
    predict, rows = method.predictor(method.begin()), [i % 15 for i in range(70)]
    found = predict(rows_of(setting, rows), None)
    assert found.shape == (70, 3)
    torch.testing.assert_close(found[60:], found[:10], rtol=0, atol=1e-4)


def test_an_image_that_has_gone_is_told_by_name(
    tiny_backbone: Backbone, tiny_images: Path, tmp_path: Path
) -> None:
    setting = make_full(tiny_backbone, tiny_images)
    paths = (tmp_path / "gone.png", *setting.table.paths[1:])
    setting.table.__dict__["paths"] = paths
    method = FullFineTuning(setting)
    with pytest.raises(ImageError, match=r"gone\.png: found no such file"):
        method.predictor(method.begin())(rows_of(setting, [1, 0]), None)


def test_what_it_settles() -> None:
    def settled(**train: Any) -> tuple[int, int, int]:
        config = FullFineTuning.resolve(make_config({f"train.{k}": v for k, v in train.items()}))
        return config.train.rounds, config.train.images_per_round, config.train.batch_size

    assert settled(rounds=50) == (5, 32, 32)
    assert settled(rounds=3, batch_size=8) == (3, 32, 8)
    assert settled(rounds=50, images_per_round=100) == (50, 100, 32)
    assert settled(rounds=50, images_per_round=5) == (50, 5, 32)


def test_settling_twice_is_settling_once() -> None:
    """As on --resume, which reads the settled settings, with the command line over them."""
    once: Config = FullFineTuning.resolve(make_config({"train.rounds": 50}))
    assert FullFineTuning.resolve(once) == once
    again = make_config({"train.rounds": 50, "train.images_per_round": once.train.images_per_round})
    assert FullFineTuning.resolve(again).train.rounds == once.train.rounds


def test_parameters_and_bytes(tiny_backbone: Backbone, tiny_images: Path) -> None:
    method = FullFineTuning(make_full(tiny_backbone, tiny_images))
    start = method.begin()
    values = sum(p.numel() for p in tiny_backbone.clip.visual.parameters())
    assert (n_parameters(start), n_bytes(start)) == (values, 4 * values)
    (record,) = one_round(method, start).records
    assert record["bytes_sent"] == 2 * 2 * 4 * values
    assert not method.side_by_side
