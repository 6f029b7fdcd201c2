"""Small models of every family that OpenCLIP registers, with the options of the registered ones.

A model's configuration is OpenCLIP's own under its name; only its sizes are changed: depth, width,
pixels and vocabulary. Towers of timm's keep their architecture and are made with fewer blocks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SIZE = 64  # pixels, where the architecture takes any

_VIT = {"embed_dim": 96, "depth": 2, "num_heads": 3, "img_size": SIZE}
# OpenCLIP's name -> what is smaller: in its vision_cfg, or in timm's call
FAMILIES: dict[str, dict[str, Any]] = {
    "ViT-S-32": {"width": 128, "layers": 2, "patch_size": 16},
    "ViT-B-32-quickgelu": {"width": 128, "layers": 2, "patch_size": 16},
    "ViT-M-16-alt": {"width": 128, "layers": 2},
    "RN50": {"layers": [1, 1, 1, 1], "width": 16},
    "ViT-L-14-CLIPA": {"width": 128, "layers": 2, "patch_size": 16},
    "ViT-L-14-worldwide": {"width": 128, "layers": 2, "patch_size": 16},
    "ViT-H-14-worldwide": {"width": 128, "head_width": 64, "layers": 2, "patch_size": 16},
    "coca_ViT-B-32": {"width": 128, "layers": 2, "patch_size": 16, "attn_pooler_heads": 2},
    "coca_base": {"width": 128, "layers": 2, "patch_size": 16},
    "convnext_tiny": {"timm": {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 96)}},
    "convnext_xxlarge": {"timm": {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 96)}},
    "swin_base_patch4_window7_224": {
        "timm": {"embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2), "img_size": 224}
    },
    "vit_medium_patch16_gap_256": {"timm": _VIT},
    "vit_relpos_medium_patch16_cls_224": {"timm": _VIT},
    "EVA01-g-14": {"timm": _VIT},
    "EVA02-B-16": {"timm": _VIT},
    "ViTamin-S": {"timm": {"depth": 2, "img_size": SIZE}},
    "MobileCLIP2-S0": {"timm": {"layers": (1, 1, 1, 1), "embed_dims": (32, 64, 128, 256)}},
    "MobileCLIP2-S3": {"timm": {"layers": (1, 1, 1, 1, 1), "embed_dims": (32, 64, 64, 128, 256)}},
    "MobileCLIP-B": {"timm": {"depth": 2, "img_size": SIZE}},
    "PE-Core-T-16-384": {"timm": _VIT},
    "ViT-B-16-SigLIP": {"timm": _VIT},
    "ViT-B-16-SigLIP2": {"timm": _VIT},
}
WORDS = ("x", "X", "mug", "red", "square", "a", "photo", "of", ".", "blue", "disc")


def _shrink(name: str) -> dict[str, Any]:
    from fedapt.model.open_clip_import import import_open_clip

    config = copy.deepcopy(import_open_clip().get_model_config(name))
    smaller = dict(FAMILIES[name])
    made_by_timm = smaller.pop("timm", {})
    config["vision_cfg"] |= smaller | {"image_size": made_by_timm.get("img_size", SIZE)}
    text = config["text_cfg"]
    text |= {"width": 64, "heads": 2, "layers": 2}
    if "hf_tokenizer_name" in text:
        text["vocab_size"] = 40
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": 64, "heads": 2, "layers": 1}
    # a tower without a projection ends at its own width
    no_projection = config["vision_cfg"].get("timm_proj", "linear") == "none"
    config["embed_dim"] = 96 if no_projection else 48
    return config


@contextmanager
def timm_towers_of(name: str) -> Iterator[None]:
    """While it lasts, timm builds the tower of this family with fewer and narrower blocks."""
    import timm

    real, smaller = timm.create_model, FAMILIES[name].get("timm", {})

    def create(model_name: str, **options: Any) -> Any:
        return real(model_name, **(options | smaller))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create)
        yield


def write_family(name: str, folder: Path, seed: int = 0) -> Path:
    """A folder with a small model of the family, its weights random and none of them 0 or 1."""
    import torch
    from safetensors.torch import save_file

    from fedapt.model.open_clip_import import import_open_clip

    config = _shrink(name)
    size = config["vision_cfg"]["image_size"]
    whole = {"model_cfg": config, "preprocess_cfg": {"size": size, "interpolation": "bicubic"}}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    write_tokenizer(name, folder)
    with torch.random.fork_rng(devices=[]), timm_towers_of(name):
        torch.manual_seed(seed)
        clip = import_open_clip().create_model(f"local-dir:{folder}", load_weights=False)
        state = {}
        for key, tensor in clip.state_dict().items():
            if tensor.is_floating_point():  # layer scales, biases and norms away from 0 and 1
                level = tensor.abs().mean().clamp(min=0.05)
                noise = torch.randn_like(tensor)
                change = noise.abs() if key.endswith("running_var") else noise
                tensor = tensor + 0.3 * level * change
            state[key] = tensor.contiguous()
    save_file(state, str(folder / "open_clip_model.safetensors"))
    return folder


def write_tokenizer(name: str, folder: Path) -> None:
    """A tokenizer of the family's kind over a few words, as transformers saves one.

    SigLIP's and one worldwide model's are SentencePiece models with EOS behind the text; CLIPA's is
    BERT's, with [CLS] and [SEP]; the other worldwide models' is XLM's, with <s> and </s>.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    if "SigLIP" in name or name == "ViT-L-14-worldwide":
        special = ["<pad>", "</s>", "<unk>"]
        pieces = [(token, 0.0) for token in special] + [(f"▁{word}", -1.0) for word in WORDS]
        pieces += [(letter, -9.0) for letter in "▁abcdefghijklm"]
        built = Tokenizer(models.Unigram(pieces, unk_id=2))
        built.pre_tokenizer = pre_tokenizers.Metaspace()
        template, eos = "$A </s>", "</s>"
        # SigLIP pads with EOS, the others with a token of their own
        named = {"pad_token": "</s>" if name == "ViT-B-16-SigLIP" else "<pad>", "eos_token": "</s>"}
    elif "CLIPA" in name or "worldwide" in name:
        is_bert = "CLIPA" in name
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if is_bert else ["<s>", "<pad>", "</s>", "?"]
        unknown = special[1] if is_bert else special[3]
        vocabulary = {token: i for i, token in enumerate([*special, *WORDS])}
        built = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
        built.pre_tokenizer = pre_tokenizers.Whitespace()
        sos, eos = ("[CLS]", "[SEP]") if is_bert else ("<s>", "</s>")
        template = f"{sos} $A {eos}"
        named = {"pad_token": special[0] if is_bert else special[1], "sep_token": eos}
        named |= {"eos_token": eos, "cls_token": sos}
    else:
        return
    from transformers import PreTrainedTokenizerFast

    ids = [(token, built.token_to_id(token)) for token in special if token in template]
    built.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    PreTrainedTokenizerFast(tokenizer_object=built, **named).save_pretrained(str(folder))
