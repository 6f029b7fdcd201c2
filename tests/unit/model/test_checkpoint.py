"""The checkpoint: what is written is read, and whatever else lies there is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedapt.core.config import Config, read_config
from fedapt.core.errors import CheckpointError, FileError
from fedapt.core.names import FUSED_METHODS
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.checkpoint import (
    SCHEMA,
    Checkpoint,
    CheckpointInfo,
    load_checkpoint,
)
from fedapt_runtime import Preprocessing
from tests.support.tiny import write_tiny_clip

C, N, M, W, D = 3, 2, 4, 32, 32


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CONFIG = read_config(
    None, ["train.seed=9223372036854775807", 'data.class_names.naive="naïve ☃"', "train.lr=0.1"]
)
TENSORS = ("meta_prompt", "adaptive_network", "keys")


def make(config: Config = CONFIG, **changes: Any) -> Checkpoint:
    """A checkpoint with other tensors (of FedAPT, by their names) or another `info`."""
    info = CheckpointInfo(
        model="tiny",
        pretrained="",
        clip_sha256="ab" * 32,
        classes=("mug", "naïve ☃", 'a "quoted" name'),
        domains=("photo", "sketch"),
        keys=("photo", "sketch"),
        clients=(0, 1),
        rounds=3,
        config=config,
        preprocessing=Preprocessing((64, 64), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0)),
        versions={"fedapt": "0.1.0"},
    )
    learned = {"meta_prompt": draw(C, M, W, seed=0), "adaptive_network": draw(N, D, seed=1)}
    learned |= {name: changes.pop(name) for name in learned if name in changes}
    checkpoint = Checkpoint(info, learned, draw(N, M, W, seed=2).abs())
    return dataclasses.replace(checkpoint, **changes)


def write_raw(
    path: Path,
    tensors: dict[str, Tensor] | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
    **fields: Any,
) -> Path:
    """A checkpoint with anything in it."""
    checkpoint = make()
    metadata = dataclasses.asdict(checkpoint.info)
    for section, values in (settings or {}).items():
        metadata["config"][section] |= values
    whole = checkpoint.tensors | (tensors or {})
    save_file(whole, str(path), {"fedapt": json.dumps(metadata | fields)})
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def test_a_checkpoint_survives_the_trip(path: Path) -> None:
    checkpoint = make()
    checkpoint.save(path)
    found = load_checkpoint(path)
    assert found.info == checkpoint.info
    assert found.info.schema == SCHEMA == 2
    assert found.info.method == "fedapt"
    assert set(found.tensors) == set(TENSORS)
    assert set(found.learned) == {"meta_prompt", "adaptive_network"}
    for name in TENSORS:
        assert torch.equal(found.tensors[name], checkpoint.tensors[name])
    assert found.keys is not None
    assert found.keys.shape == (N, M, W)


def test_the_settings_survive_to_the_last_one(path: Path) -> None:
    config = read_config(
        None,
        [
            "prompt.temperature=0.125",
            "data.test_fraction=0.3",
            "federation.alpha=0.1",
            "train.method=fedapt-unsupervised",
            "unsupervised.views=2",
        ],
    )
    make(config).save(path)
    found = load_checkpoint(path).info
    assert found.config == config
    assert found.method == "fedapt-unsupervised"
    make().save(path)
    assert load_checkpoint(path).info.config == CONFIG


def test_keys_and_clients_need_not_be_as_many_as_domains(path: Path) -> None:
    info = dataclasses.replace(
        make().info, keys=("photo/1", "photo/2", "sketch"), clients=(0, 0, 0, 1, 1)
    )
    network, keys = draw(3, D, seed=1), draw(3, M, W, seed=2)
    make(info=info, adaptive_network=network, keys=keys).save(path)
    assert load_checkpoint(path).info == info


def test_a_shared_context_survives_too(path: Path) -> None:
    make(meta_prompt=draw(M, W, seed=0)).save(path)
    assert load_checkpoint(path).learned["meta_prompt"].shape == (M, W)


def test_views_and_strides_survive(path: Path) -> None:
    checkpoint = make(adaptive_network=draw(D, N, seed=1).T)
    checkpoint.save(path)
    assert torch.equal(
        load_checkpoint(path).learned["adaptive_network"], checkpoint.learned["adaptive_network"]
    )


def test_the_same_content_has_the_same_bytes(path: Path, tmp_path: Path) -> None:
    make().save(path)
    other = tmp_path / "other.safetensors"
    make(learned=dict(reversed(list(make().learned.items())))).save(other)
    assert other.read_bytes() == path.read_bytes()
    load_checkpoint(path).save(other)
    assert other.read_bytes() == path.read_bytes()
    make(info=dataclasses.replace(make().info, rounds=4)).save(other)
    assert other.read_bytes() != path.read_bytes()


def test_saving_replaces_the_old_file_or_leaves_it(path: Path) -> None:
    make().save(path)
    make(info=dataclasses.replace(make().info, rounds=9)).save(path)
    assert load_checkpoint(path).info.rounds == 9
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(FileError, match="found File exists; expected a file that can be written"):
        make().save(tmp_path / "file" / "checkpoint.safetensors")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    expected = "expected a checkpoint.safetensors written by `fedapt train`"
    with pytest.raises(CheckpointError, match=f"absent: found no such file; {expected}"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=f"found not a file; {expected}") as caught:
        load_checkpoint(tmp_path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"hello, world",
        bytes(range(256)) * 8,
        b"\xff" * 4096,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{]",
    ],
)
def test_other_bytes_are_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"found a damaged file \(SafetensorError"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    make().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"found a damaged file \(SafetensorError"):
        load_checkpoint(path)


def test_a_file_without_our_metadata_is_refused(path: Path) -> None:
    save_file({"meta_prompt": torch.zeros(1)}, str(path))
    with pytest.raises(CheckpointError, match="a safetensors file without fedapt's metadata"):
        load_checkpoint(path)
    save_file({"meta_prompt": torch.zeros(1)}, str(path), {"format": "pt"})
    with pytest.raises(CheckpointError, match="a safetensors file without fedapt's metadata"):
        load_checkpoint(path)


@pytest.mark.parametrize("metadata", ["{", "[1]", '"text"', "null", "3"])
def test_metadata_that_is_no_object_is_refused(path: Path, metadata: str) -> None:
    save_file({"meta_prompt": torch.zeros(1)}, str(path), {"fedapt": metadata})
    with pytest.raises(CheckpointError, match="found a damaged file"):
        load_checkpoint(path)


@pytest.mark.parametrize("schema", [99, 0, 1, "2", None])
def test_another_schema_is_refused(path: Path, schema: Any) -> None:
    write_raw(path, schema=schema)
    with pytest.raises(
        CheckpointError, match=f"found a checkpoint of schema {schema}; expected schema {SCHEMA}"
    ):
        load_checkpoint(path)


def test_a_field_or_setting_of_a_later_version_is_left_out(path: Path) -> None:
    known = load_checkpoint(write_raw(path))
    config = dataclasses.asdict(known.info.config)
    config["train"]["warp"] = 9
    write_raw(path, surprise=1, config=config | {"teleport": {"range": 1}})
    assert load_checkpoint(path).info == known.info
    write_raw(path, surprise=1, schema=3)
    with pytest.raises(CheckpointError, match="found a checkpoint of schema 3; expected schema 2"):
        load_checkpoint(path)


def test_a_field_too_few_is_refused(path: Path) -> None:
    metadata = dataclasses.asdict(make().info)
    del metadata["rounds"]
    save_file({"keys": torch.zeros(1)}, str(path), {"fedapt": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match="found a damaged file"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("meta_prompt", r"a damaged file \(KeyError: 'meta_prompt'\)"),
        ("adaptive_network", r"a damaged file \(KeyError: 'adaptive_network'\)"),
        ("keys", r"tensors \{.*\} for 3 classes and 2 keys"),
    ],
)
@pytest.mark.parametrize("method", FUSED_METHODS)
def test_a_missing_tensor_is_refused(path: Path, missing: str, text: str, method: str) -> None:
    checkpoint = make(read_config(None, [f"train.method={method}"]))
    tensors = {name: t for name, t in checkpoint.tensors.items() if name != missing}
    assert len(tensors) == 2
    metadata = json.dumps(dataclasses.asdict(checkpoint.info))
    save_file(tensors, str(path), {"fedapt": metadata})
    with pytest.raises(CheckpointError, match=f"found {text}"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("meta_prompt", (C + 1, M, W)),
        ("meta_prompt", (C, M + 1, W)),
        ("meta_prompt", (C, M, W - 1)),
        ("meta_prompt", (C, 1, M, W)),
        ("meta_prompt", (M, W + 1)),
        ("keys", (N + 1, M, W)),
        ("keys", (N, M, W + 1)),
        ("keys", (M, W)),
        ("adaptive_network", (N + 1, D)),
        ("adaptive_network", (D,)),
        ("adaptive_network", (N, D, 1)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(path: Path, name: str, shape: tuple[int, ...]) -> None:
    write_raw(path, {name: torch.zeros(shape)})
    with pytest.raises(
        CheckpointError, match=r"found tensors \{.*\} for 3 classes and 2 keys"
    ) as caught:
        load_checkpoint(path)
    assert f"'{name}': {list(shape)}" in caught.value.found


def test_no_keys_are_refused(path: Path) -> None:
    write_raw(path, {"keys": torch.zeros(0, M, W), "adaptive_network": torch.zeros(0, D)}, keys=[])
    with pytest.raises(CheckpointError, match="for 3 classes and 0 keys"):
        load_checkpoint(path)


def test_no_classes_are_refused(path: Path) -> None:
    write_raw(path, {"meta_prompt": torch.zeros(0, M, W)}, classes=[])
    with pytest.raises(CheckpointError, match="for 0 classes and 2 keys"):
        load_checkpoint(path)
    write_raw(path, {"meta_prompt": torch.zeros(M, W)}, classes=[])
    with pytest.raises(CheckpointError, match="for 0 classes and 2 keys"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", TENSORS)
def test_nan_and_infinity_are_refused(path: Path, name: str, value: float) -> None:
    tensor = make().tensors[name].clone()
    tensor.view(-1)[-1] = value
    make(**{name: tensor}).save(path)
    with pytest.raises(CheckpointError, match=f"found {name} of torch.float32 with NaN, infinity"):
        load_checkpoint(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_another_dtype_is_refused(path: Path, dtype: torch.dtype) -> None:
    write_raw(path, {"keys": torch.zeros(N, M, W, dtype=dtype)})
    with pytest.raises(CheckpointError, match=f"found keys of {dtype} with NaN, .* a wrong dtype"):
        load_checkpoint(path)


# other methods


OTHER = read_config(None, ["train.method=local"])


def test_any_method_has_its_own_tensors(path: Path) -> None:
    learned = {"contexts": draw(2, C, M, W, seed=3), "b": draw(1, seed=4)}
    checkpoint = make(OTHER, learned=learned, keys=None)
    checkpoint.save(path)
    found = load_checkpoint(path)
    assert found.info == checkpoint.info
    assert found.info.method == "local"
    assert found.keys is None
    assert set(found.learned) == set(found.tensors) == {"contexts", "b"}
    assert all(torch.equal(found.learned[name], tensor) for name, tensor in learned.items())


def test_a_method_may_have_learned_nothing(path: Path) -> None:
    make(read_config(None, ["train.method=zero-shot"]), learned={}, keys=None).save(path)
    found = load_checkpoint(path)
    assert (found.learned, found.keys, found.info.rounds) == ({}, None, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_of_any_method_are_refused(path: Path, value: float) -> None:
    make(OTHER, learned={"contexts": torch.tensor([0.0, value])}, keys=None).save(path)
    with pytest.raises(CheckpointError, match=r"found contexts of torch.float32 with NaN, infin"):
        load_checkpoint(path)


@pytest.mark.parametrize("shape", [(N + 1, M, W), (N, M), (0, M, W)])
def test_keys_of_any_method_are_checked(path: Path, shape: tuple[int, ...]) -> None:
    make(OTHER, keys=torch.zeros(shape)).save(path)
    with pytest.raises(CheckpointError, match=r"found tensors .* for 3 classes and 2 keys"):
        load_checkpoint(path)


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_a_pickle_is_refused_and_never_run(path: Path, tmp_path: Path) -> None:
    trapped = tmp_path / "trapped"
    pickle.loads(pickle.dumps(Trap(trapped))).close()
    assert trapped.exists()  # the trap works
    trapped.unlink()
    path.write_bytes(pickle.dumps(Trap(trapped)))
    with pytest.raises(CheckpointError, match="found a damaged file"):
        load_checkpoint(path)
    torch.save({"keys": Trap(trapped)}, path)
    with pytest.raises(CheckpointError, match="found a damaged file"):
        load_checkpoint(path)
    assert not trapped.exists()


# with a CLIP


@pytest.fixture
def checkpoint(tiny_backbone: Backbone) -> Checkpoint:
    return make(info=dataclasses.replace(make().info, clip_sha256=tiny_backbone.sha256))


def test_it_becomes_the_servers_model(checkpoint: Checkpoint, tiny_backbone: Backbone) -> None:
    model = checkpoint.to_global_model(tiny_backbone)
    assert torch.equal(model.context, checkpoint.learned["meta_prompt"])
    assert torch.equal(model.adaptive_network, checkpoint.learned["adaptive_network"])
    assert torch.equal(model.keys, checkpoint.keys)
    assert model.temperature == 0.01
    assert model.logit_scale == tiny_backbone.logit_scale
    assert model.exact_logits(draw(2, D, seed=9)).shape == (2, C)


@pytest.mark.parametrize("method", ["local", "promptfl", "zero-shot", "full"])
def test_only_the_methods_that_are_fused_become_the_servers_model(
    checkpoint: Checkpoint, tiny_backbone: Backbone, method: str
) -> None:
    assert FUSED_METHODS == ("fedapt", "fedapt-unsupervised")
    config = read_config(None, [f"train.method={method}"])
    other = dataclasses.replace(
        checkpoint, info=dataclasses.replace(checkpoint.info, config=config)
    )
    with pytest.raises(
        CheckpointError,
        match=f"the checkpoint: found the method {method}; expected a fused method: fedapt, "
        r"fedapt-unsupervised\. To do: train with one of these; `fedapt evaluate` accepts any",
    ):
        other.to_global_model(tiny_backbone)


def test_the_temperature_is_that_of_the_settings(
    checkpoint: Checkpoint, tiny_backbone: Backbone
) -> None:
    config = read_config(None, ["prompt.temperature=0.5", "train.method=fedapt-unsupervised"])
    soft = dataclasses.replace(checkpoint, info=dataclasses.replace(checkpoint.info, config=config))
    assert soft.to_global_model(tiny_backbone).temperature == 0.5


def test_another_clip_is_refused_by_its_hash(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = load_backbone(str(write_tiny_clip(tmp_path / "other", seed=1)))
    expected = checkpoint.info.clip_sha256[:12]
    with pytest.raises(
        CheckpointError,
        match=f"found weights of hash {other.sha256[:12]}; expected {expected}, which the "
        r"checkpoint was trained on \(tiny\)\. To do: use the same weights, or train again",
    ):
        checkpoint.to_global_model(other)


def test_its_own_clip_is_not_refused(checkpoint: Checkpoint, tiny_backbone: Backbone) -> None:
    checkpoint.check_backbone(tiny_backbone)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("rounds", -1, "metadata with a wrong rounds"),
        ("rounds", 1.5, "metadata with a wrong rounds"),
        ("rounds", True, "metadata with a wrong rounds"),
        ("classes", [1, 2, 3], "metadata with a wrong names"),
        ("domains", ["photo", None], "metadata with a wrong names"),
        ("keys", [0, 1], "metadata with a wrong names"),
        ("model", 7, "metadata with a wrong names"),
        ("pretrained", None, "metadata with a wrong names"),
        ("clients", [0, 2], "metadata with a wrong clients"),
        ("clients", [0, -1], "metadata with a wrong clients"),
        ("clients", [0, 0.5], "metadata with a wrong clients"),
        ("clients", ["0"], "metadata with a wrong clients"),
        ("clients", 2, r"a damaged file \(TypeError"),
        ("classes", "abc", r"a damaged file \(TypeError"),
        ("preprocessing", {"size": [2]}, "metadata with a wrong preprocessing"),
        ("preprocessing", [], "metadata with a wrong preprocessing"),
        ("config", [], "a damaged file"),
        ("config", None, "a damaged file"),
        ("config", {"train": {"rounds": 0}}, r"a damaged file \(train\.rounds = 0\)"),
    ],
)
def test_metadata_of_a_wrong_type_is_refused(
    path: Path, name: str, value: object, text: str
) -> None:
    load_checkpoint(write_raw(path))
    write_raw(path, **{name: value})
    with pytest.raises(CheckpointError, match=f"found {text}.*; expected a checkpoint.safetensors"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt.temperature", "x"),
        ("prompt.temperature", 0.0),
        ("prompt.temperature", float("nan")),
        ("train.seed", 1.5),
        ("train.seed", -1),
        ("train.method", "fedavg"),
        ("data.test_fraction", 1.0),
        ("data.split_seed", None),
        ("data.class_names", {"naive": 1}),
    ],
)
def test_settings_of_a_wrong_type_are_refused(path: Path, name: str, value: object) -> None:
    section, key = name.split(".")
    write_raw(path, settings={section: {key: value}})
    expected = re.escape(f"found a damaged file ({name} = {value!r}); expected a checkpoint.safe")
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_checkpoint(path)
    assert caught.value.exit_code == 4


def test_a_real_checkpoint_says_how_it_was_trained(
    tiny_run: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    info = load_checkpoint(tiny_run / "checkpoint.safetensors").info
    config = read_config(tiny_run / "config.toml")
    # where the images stood is nobody else's business
    assert config.data.root
    assert info.config == dataclasses.replace(
        config, data=dataclasses.replace(config.data, root="")
    )
    assert (info.model, info.pretrained) == (str(tiny_clip), "")
    assert info.clip_sha256 == tiny_backbone.sha256
    assert info.classes == ("blue disc", "red square", "stripes")
    assert info.domains == info.keys == ("photo", "sketch")
    assert (info.clients, info.rounds) == ((0, 1), 3)
