"""Weights as people have them: each way gives the model that plain weights give, or is refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from fedapt.core.errors import ModelError, ModelNotSupported
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.weights import find_model, read_state

NAME = "ViT-S-32-alt"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def plain() -> Backbone:
    return load_backbone(NAME, "random")


@pytest.fixture(scope="module")
def state(plain: Backbone) -> State:
    # not the weights that random ones would be
    return {k: (v * 1.5 if "proj" in k else v).clone() for k, v in plain.clip.state_dict().items()}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def of_lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "state_dict": prefixed(state, "model.") | {"criterion.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        "hyper_parameters": {"lr": 0.1},
    }


WAYS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "module": lambda state: prefixed(state, "module."),
    "model": lambda state: prefixed(state, "model."),
    "compiled": lambda state: prefixed(state, "module._orig_mod."),
    "open_clip": lambda state: {"epoch": 1, "state_dict": prefixed(state, "module.")},
    "lightning": of_lightning,
    "wrapped": lambda state: {"model": {"state_dict": state}, "optimizer": {}},
    "averaged": lambda state: state | prefixed({k: v + 1 for k, v in state.items()}, "ema.model."),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_of_torch_gives_what_plain_weights_give(
    tmp_path: Path, state: State, way: str
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(WAYS[way](state), path)
    found = find_model(read_state(path))
    assert found.keys() >= state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("way", ["lightning", "module"])
def test_the_model_has_these_weights(tmp_path: Path, state: State, way: str) -> None:
    torch.save(WAYS[way](state), tmp_path / "weights.ckpt")
    loaded = load_backbone(NAME, str(tmp_path / "weights.ckpt"))
    assert loaded.pretrained == str(tmp_path / "weights.ckpt")
    assert all(torch.equal(loaded.clip.state_dict()[name], t) for name, t in state.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_loaded_as_float32(
    tmp_path: Path, state: State, dtype: torch.dtype
) -> None:
    save_file({k: v.to(dtype) for k, v in state.items()}, tmp_path / "half.safetensors")
    loaded = load_backbone(NAME, str(tmp_path / "half.safetensors")).clip.state_dict()
    assert all(torch.equal(loaded[k], v.to(dtype).float()) for k, v in state.items())


def write_shards(state: State, folder: Path) -> Path:
    names = sorted(state)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for shard, inside in parts.items():
        save_file({name: state[name] for name in inside}, folder / shard)
    index = folder / "model.safetensors.index.json"
    places = {name: shard for shard, inside in parts.items() for name in inside}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_shards_are_put_together(tmp_path: Path, state: State) -> None:
    loaded = load_backbone(NAME, str(write_shards(state, tmp_path))).clip.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("../b.safetensors", "the shard '../b.safetensors'"),
        ("/b.safetensors", "the shard '/b.safetensors'"),
        ("none.safetensors", "No such file"),
        ("a.safetensors", "1 tensors missing in the shards"),
    ],
)
def test_shards_that_are_not_there_are_told(
    tmp_path: Path, state: State, place: str, text: str
) -> None:
    index = write_shards(state, tmp_path)
    fields = json.loads(index.read_text())
    fields["weight_map"]["another"] = place
    index.write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=text):
        read_state(index)


def test_objects_in_a_pickle_are_refused_without_torchs_advice(
    tmp_path: Path, state: State
) -> None:
    path = tmp_path / "lightning.ckpt"
    content = of_lightning(state) | {"hyper_parameters": argparse.Namespace(lr=0.1)}
    torch.save(content, path)
    with pytest.raises(ModelError) as told:
        load_backbone(NAME, str(path))
    assert "holds more than tensors (argparse.Namespace)" in str(told.value)
    assert "safetensors.torch.save_file" in told.value.next_step
    assert "weights_only" not in str(told.value)
    assert "weights_only" not in "".join(map(str, (told.value.__cause__,)))


def test_what_does_not_fit_is_counted_and_named_briefly(tmp_path: Path, state: State) -> None:
    wrong = {k: v for k, v in state.items() if not k.startswith("visual.transformer")}
    wrong |= {"extra.weight": torch.zeros(2), "ln_final.bias": torch.zeros(5)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(ModelError) as told:
        load_backbone(NAME, str(tmp_path / "wrong.safetensors"))
    n_missing = len(state) - len(wrong) + 1
    assert f"{n_missing} missing: visual.transformer." in told.value.found
    assert "1 unknown: extra.weight" in told.value.found
    assert "1 of another shape: ln_final.bias" in told.value.found
    assert len(str(told.value)) < 700


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(50)])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.safetensors.index.json"])
def test_what_is_no_file_of_weights_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as told:
        read_state(tmp_path / name)
    assert "weights_only" not in str(told.value)
    assert len(str(told.value)) < 600


@pytest.mark.parametrize("content", [[1], {"epoch": 3}, {"state_dict": {}}, torch.zeros(2)])
def test_a_file_without_weights_is_told(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"found (no tensor|a list|a Tensor|a dict)"):
        read_state(tmp_path / "w.pt")


# transformers


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def clip_model(request: pytest.FixtureRequest):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    vision = {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
        "hidden_act": request.param,
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": request.param,
        "eos_token_id": 49407,
        "bos_token_id": 49406,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.CLIPModel(config).eval()
        for parameter in model.parameters():  # biases and norms that are not the usual 0 and 1
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def compare(loaded: Backbone, model: Any) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3, 64, 64))).float()
    tokens = loaded.tokenizer(["a photo of a mug", "bike", "x " * 90])
    with torch.inference_mode():
        expected = model(input_ids=tokens, pixel_values=pixels)
        images = loaded.clip.encode_image(pixels, normalize=True)
        texts = loaded.clip.encode_text(tokens, normalize=True)
    torch.testing.assert_close(images, expected.image_embeds, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(texts, expected.text_embeds, atol=2e-6, rtol=1e-5)
    assert loaded.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))


def test_a_folder_of_transformers_computes_the_same(clip_model: Any, tmp_path: Path) -> None:
    clip_model.save_pretrained(tmp_path / "clip")
    loaded = load_backbone(str(tmp_path / "clip"))
    compare(loaded, clip_model)
    assert loaded.name == str(tmp_path / "clip")
    assert loaded.preprocessing.size == (64, 64)


def test_shards_and_half_precision_of_transformers(clip_model: Any, tmp_path: Path) -> None:
    clip_model.save_pretrained(tmp_path / "clip", max_shard_size="200KB")
    assert (tmp_path / "clip" / "model.safetensors.index.json").is_file()
    compare(load_backbone(str(tmp_path / "clip")), clip_model)


def test_preprocessing_is_that_of_the_folder(clip_model: Any, tmp_path: Path) -> None:
    clip_model.save_pretrained(tmp_path)
    fields = {
        "crop_size": {"height": 64, "width": 64},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 2,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    found = load_backbone(str(tmp_path)).preprocessing
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.interpolation, found.resize_mode) == ("bilinear", "shortest")
    image = Image.new("RGB", (100, 80), (10, 20, 30))
    assert found.load(image, "image").shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"model_type": "siglip"},
            "a transformers model of type 'siglip'; expected the type 'clip'",
        ),
        ({"model_type": None}, "model of type None"),
        ({"text_config": {"hidden_act": "relu"}}, "activations and epsilons"),
        ({"text_config": {"vocab_size": 30000}}, "30000 tokens, 3 channels"),
        ({"vision_config": {"num_channels": 4}}, "49408 tokens, 4 channels"),
    ],
)
def test_other_models_of_transformers_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"} | changes))
    with pytest.raises(ModelNotSupported, match=text):
        load_backbone(str(tmp_path))


def test_a_folder_without_weights_or_configuration_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ModelError, match=r"found no weights; expected one of model\.safetensors"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelError, match="a file that cannot be read"):
        load_backbone(str(tmp_path))


def test_weights_of_siglip_are_refused_by_name(tmp_path: Path) -> None:
    state = {"logit_scale": torch.zeros(1), "vision_model.head.probe": torch.zeros(1, 1, 4)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelNotSupported, match="weights of transformers' SiglipModel"):
        load_backbone(NAME, str(tmp_path / "model.safetensors"))
