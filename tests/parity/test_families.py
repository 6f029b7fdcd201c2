"""Every family of OpenCLIP's models: the same features as OpenCLIP's own, or refused by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from fedapt.core.errors import ModelError, ModelNotSupported
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.image_tower import FEATURES, INPUT
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.prompted_clip import prompted_text
from fedapt.model.tokens import tokenize_texts
from fedapt.onnx.tower import image_tower_to_onnx
from fedapt.onnx.weights import open_model
from tests.support.families import FAMILIES, timm_towers_of, write_family

NAMES = ("mug", "red square", "blue disc of a mug")
M = 3
TEXT_TOLERANCE = IMAGE_TOLERANCE = 1e-5

Load = Callable[[str], Backbone]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """A family's small model by name, loaded once."""
    folder = tmp_path_factory.mktemp("families")

    @functools.cache
    def load_family(name: str) -> Backbone:
        written = write_family(name, folder / name)
        with timm_towers_of(name):
            return load_backbone(str(written))

    yield load_family
    load_family.cache_clear()


@pytest.fixture(params=FAMILIES, scope="module")
def backbone(request: pytest.FixtureRequest, load: Load) -> Backbone:
    return load(request.param)


def open_clip_features(backbone: Backbone, texts: list[str]) -> Tensor:
    """OpenCLIP's own tokens through OpenCLIP's own tower, to unit length."""
    with torch.inference_mode():
        return normalize(backbone.clip.encode_text(backbone.tokenizer(texts)), dim=-1)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    error = (found - expected).norm(dim=-1).max()
    apart = (expected[0] - expected[1]).norm()
    assert float(error) < TEXT_TOLERANCE
    assert float(apart) > 100 * TEXT_TOLERANCE  # the texts are told apart


def embedding_of(backbone: Backbone) -> torch.nn.Embedding:
    clip: Any = backbone.clip
    embedding: torch.nn.Embedding = (clip.text if hasattr(clip, "text") else clip).token_embedding
    return embedding


def test_a_text_has_open_clips_features(backbone: Backbone) -> None:
    texts = ("a photo of a mug.", "a red square.", "x")
    tower = backbone.text_tower
    tokens = tokenize_texts(backbone.prompts, texts, tower.layout)
    with torch.inference_mode():
        found = tower(tower.token_embedding(tokens.ids), tokens.pooled)
    assert_same(normalize(found, dim=-1), open_clip_features(backbone, list(texts)))
    assert found.shape[1] == backbone.joint_width


@pytest.mark.parametrize("shared", [False, True], ids=["own contexts", "one context"])
def test_placeholders_as_context_give_the_features_of_the_text(
    backbone: Backbone, shared: bool
) -> None:
    text = prompted_text(backbone, NAMES, M)
    placeholder = backbone.prompts.encode("X")
    assert len(placeholder) == 1
    row = backbone.text_tower.token_embedding(torch.tensor(placeholder))
    context = row.expand(M, -1) if shared else row.expand(len(NAMES), M, -1)
    with torch.inference_mode():
        found = text(context)
        batched = text(context.expand(2, 1 if shared else len(NAMES), M, -1))
    expected = open_clip_features(backbone, [f"{'X ' * M}{name}." for name in NAMES])
    assert_same(found, expected)
    for features in batched:
        assert_same(features, expected)


@pytest.mark.parametrize("shared", [False, True], ids=["own contexts", "one context"])
def test_a_learned_context_stands_where_the_placeholders_stood(
    backbone: Backbone, shared: bool
) -> None:
    clip_embedding = embedding_of(backbone)
    width = clip_embedding.embedding_dim
    shape = (M, width) if shared else (len(NAMES), M, width)
    context = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    texts = [f"{'X ' * M}{name}." for name in NAMES]
    ids = backbone.tokenizer(texts)
    (placeholder,) = backbone.prompts.encode("X")
    starts = (ids == placeholder).int().argmax(-1)
    assert len(set(starts.tolist())) == 1
    start = int(starts[0])

    def replace(module: Any, arguments: Any, output: Tensor) -> Tensor:
        rows = context.expand(len(NAMES), M, width)
        return torch.cat([output[:, :start], rows, output[:, start + M :]], dim=1)

    hook = clip_embedding.register_forward_hook(replace)
    try:
        expected = open_clip_features(backbone, texts)
    finally:
        hook.remove()
    with torch.inference_mode():
        found = prompted_text(backbone, NAMES, M)(context)
    assert_same(found, expected)
    plain = open_clip_features(backbone, texts)
    assert float((plain - expected).norm(dim=-1).min()) > 100 * TEXT_TOLERANCE


def images(backbone: Backbone, count: int) -> NDArray[np.uint8]:
    """Blocks of colour: they differ from each other at every scale."""
    height, width = backbone.preprocessing.size
    rng = np.random.default_rng(count)
    blocks = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    rows = np.arange(height) * 4 // height
    columns = np.arange(width) * 4 // width
    return blocks[:, rows][:, :, columns]


def torch_features(backbone: Backbone, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """ToTensor, Normalize and OpenCLIP's own encode_image, to unit length."""
    mean, std = (
        torch.tensor(value).view(3, 1, 1)
        for value in (backbone.preprocessing.mean, backbone.preprocessing.std)
    )
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        features = normalize(backbone.clip.encode_image((scaled - mean) / std), dim=-1)
    result: NDArray[np.float32] = features.numpy()
    return result


def check_image_tower(backbone: Backbone) -> None:
    model = image_tower_to_onnx(backbone)
    onnx.checker.check_model(model, full_check=True)
    session = open_model(model, "cpu", backbone.label)
    for count in (1, 2, 5):
        pixels = images(backbone, count)
        (found,) = session.run([FEATURES], {INPUT: pixels})
        expected = torch_features(backbone, pixels)
        unit = found / np.linalg.norm(found, axis=-1, keepdims=True)
        assert np.abs(unit - expected).max() <= IMAGE_TOLERANCE
        if count > 1:
            apart = np.abs(expected[0] - expected[1]).max()
            assert apart > 5 * IMAGE_TOLERANCE
    check_tidy(model)


def check_tidy(model: onnx.ModelProto) -> None:
    """Nothing is left that nobody reads, or that takes shapes apart but for the batch."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    wanted = read | {value.name for value in graph.output}
    assert [node.op_type for node in graph.node if not set(node.output) & wanted] == []
    shapes = [node for node in graph.node if node.op_type in ("Shape", "Size")]
    assert len(shapes) <= 1
    for node in shapes:
        assert {a.name: a.i for a in node.attribute} == {"start": 0, "end": 1}
    dynamic = {"If", "Loop", "Scan", "NonZero", "ConstantOfShape", "Range", "Where"}
    assert {node.op_type for node in graph.node} & dynamic == set()


def test_the_image_tower_has_open_clips_features_in_a_tidy_graph(backbone: Backbone) -> None:
    check_image_tower(backbone)


def test_a_model_of_full_size_by_its_name() -> None:
    backbone = load_backbone("ViT-S-32", "random")
    check_image_tower(backbone)
    expected = open_clip_features(backbone, [f"{'X ' * M}{name}." for name in NAMES])
    row = backbone.text_tower.token_embedding(torch.tensor(backbone.prompts.encode("X")))
    with torch.inference_mode():
        assert_same(prompted_text(backbone, NAMES, M)(row.expand(M, -1)), expected)


def test_every_registered_model_is_of_a_family_here_or_refused() -> None:
    open_clip = import_open_clip()

    def options(name: str) -> tuple[Any, ...]:
        """What makes a model's architecture, without its sizes."""
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        sizes = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
        sizes |= {"timm_model_name", "timm_drop", "timm_drop_path", "timm_model_pretrained"}
        timm_name = vision.get("timm_model_name", str(type(vision.get("layers")).__name__))
        kind = timm_name.split("_")[0]
        return kind, tuple(sorted(vision.keys() - sizes)), text.get("pool_type")

    known = {options(name) for name in FAMILIES}
    unknown = {
        name
        for name in open_clip.list_models()
        if options(name) not in known
        and "hf_model_name" not in open_clip.get_model_config(name)["text_cfg"]
    }
    assert unknown == set()


# refused


@pytest.mark.parametrize(
    "name",
    [
        "roberta-ViT-B-32",
        "mt5-base-ViT-B-32",
        "xlm-roberta-base-ViT-B-32",
        "nllb-clip-base",
        "nllb-clip-base-siglip",
        "coca_roberta-ViT-B-32",
    ],
)
@pytest.mark.parametrize("pretrained", ["random", ""])
def test_text_towers_of_hugging_face_are_refused_before_anything_is_built(
    name: str, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    open_clip = import_open_clip()
    monkeypatch.setattr(open_clip, "create_model", lambda name, **_: built.append(name))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: built.append(name))
    inner = open_clip.get_model_config(name)["text_cfg"]["hf_model_name"]
    with pytest.raises(
        ModelNotSupported,
        match=rf"^model {name}: found the text tower {inner} of Hugging Face's, which takes no "
        "learned context; expected a text transformer of OpenCLIP's own",
    ) as caught:
        load_backbone(name, pretrained)
    assert caught.value.exit_code == 4
    assert built == []


def test_a_tokenizer_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = import_open_clip()
    asked: list[str] = []

    def fail(name: str) -> Any:
        asked.append(name)
        raise OSError("we couldn't connect to 'https://example.org' to load timm/ViT-B-16-SigLIP")

    monkeypatch.setattr(open_clip, "get_tokenizer", fail)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: torch.nn.Identity())
    with pytest.raises(
        ModelError,
        match=r"model ViT-B-16-SigLIP: found no usable tokenizer \(OSError: .*"
        r"timm/ViT-B-16-SigLIP\); expected the files of its tokenizer.*transformers",
    ) as caught:
        load_backbone("ViT-B-16-SigLIP", "random")
    assert not isinstance(caught.value, ModelNotSupported)
    assert asked == ["ViT-B-16-SigLIP"]


def test_a_tower_that_pools_at_a_token_of_another_tokenizer_is_refused(
    tmp_path: Path,
) -> None:
    folder = write_family("ViT-H-14-worldwide", tmp_path / "worldwide")
    config = folder / "open_clip_config.json"
    text = config.read_text()
    assert '"eos_id": 2' in text
    assert load_backbone(str(folder)).prompts.behind == (2,)
    config.write_text(text.replace('"eos_id": 2', '"eos_id": 3'))
    with pytest.raises(ModelNotSupported, match="found a text tower that pools at token 3"):
        load_backbone(str(folder))
