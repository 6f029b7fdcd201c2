"""The checkpoint: what is written is read, and whatever else lies there is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedapt.core.errors import CheckpointError, FileError
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.checkpoint import SCHEMA, Checkpoint, CheckpointInfo, load_checkpoint
from tests.support.tiny import write_tiny_clip

C, N, M, W, D = 3, 2, 4, 32, 32


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(**changes: Any) -> Checkpoint:
    info = CheckpointInfo(
        method="fedapt",
        model="tiny",
        pretrained="",
        clip_sha256="ab" * 32,
        classes=("mug", "naïve ☃", 'a "quoted" name'),
        domains=("photo", "sketch"),
        temperature=0.01,
        rounds=3,
        seed=2**63 - 1,
        test_fraction=0.2,
        split_seed=0,
        class_names={"naive": "naïve ☃"},
        preprocessing={"size": [64, 64], "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]},
        versions={"fedapt": "0.1.0"},
    )
    checkpoint = Checkpoint(
        info, draw(C, M, W, seed=0), draw(N, D, seed=1), draw(N, M, W, seed=2).abs()
    )
    return dataclasses.replace(checkpoint, **changes)


def write_raw(path: Path, tensors: dict[str, Tensor] | None = None, **fields: Any) -> Path:
    """A checkpoint with anything in it."""
    checkpoint = make()
    metadata = dataclasses.asdict(checkpoint.info) | fields
    names = ("meta_prompt", "adaptive_network", "keys")
    whole = {name: getattr(checkpoint, name) for name in names} | (tensors or {})
    save_file(whole, str(path), {"fedapt": json.dumps(metadata)})
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def test_a_checkpoint_survives_the_trip(path: Path) -> None:
    checkpoint = make()
    checkpoint.save(path)
    found = load_checkpoint(path)
    assert found.info == checkpoint.info
    for name in ("meta_prompt", "adaptive_network", "keys"):
        assert torch.equal(getattr(found, name), getattr(checkpoint, name))
    assert found.context_length == M


def test_a_shared_context_survives_too(path: Path) -> None:
    make(meta_prompt=draw(M, W, seed=0)).save(path)
    assert load_checkpoint(path).meta_prompt.shape == (M, W)


def test_views_and_strides_survive(path: Path) -> None:
    checkpoint = make(adaptive_network=draw(D, N, seed=1).T)
    checkpoint.save(path)
    assert torch.equal(load_checkpoint(path).adaptive_network, checkpoint.adaptive_network)


def test_the_same_content_has_the_same_bytes(path: Path, tmp_path: Path) -> None:
    make().save(path)
    other = tmp_path / "other.safetensors"
    info = make().info
    shuffled = dict(reversed(list(info.preprocessing.items())))
    assert list(shuffled) != list(info.preprocessing)
    make(info=dataclasses.replace(info, preprocessing=shuffled)).save(other)
    assert other.read_bytes() == path.read_bytes()
    make(info=dataclasses.replace(info, rounds=4)).save(other)
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


@pytest.mark.parametrize("schema", [99, 0, "1", None])
def test_another_schema_is_refused(path: Path, schema: Any) -> None:
    write_raw(path, schema=schema)
    with pytest.raises(
        CheckpointError, match=f"found a checkpoint of schema {schema}; expected schema {SCHEMA}"
    ):
        load_checkpoint(path)


def test_a_field_too_many_or_too_few_is_refused(path: Path) -> None:
    load_checkpoint(write_raw(path))
    write_raw(path, surprise=1)
    with pytest.raises(CheckpointError, match=r"damaged file \(TypeError: .*'surprise'"):
        load_checkpoint(path)
    metadata = dataclasses.asdict(make().info)
    del metadata["rounds"]
    save_file({"keys": torch.zeros(1)}, str(path), {"fedapt": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match="found a damaged file"):
        load_checkpoint(path)


@pytest.mark.parametrize("missing", ["meta_prompt", "adaptive_network", "keys"])
def test_a_missing_tensor_is_refused(path: Path, missing: str) -> None:
    checkpoint = make()
    names = {"meta_prompt", "adaptive_network", "keys"} - {missing}
    metadata = json.dumps(dataclasses.asdict(checkpoint.info))
    save_file({name: getattr(checkpoint, name) for name in names}, str(path), {"fedapt": metadata})
    with pytest.raises(CheckpointError, match=rf"damaged file \(SafetensorError: .*{missing}"):
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
        CheckpointError, match=r"found tensors \{.*\} for 3 classes and 2 domains"
    ) as caught:
        load_checkpoint(path)
    assert f"'{name}': {list(shape)}" in caught.value.found


def test_no_domains_are_refused(path: Path) -> None:
    write_raw(
        path, {"keys": torch.zeros(0, M, W), "adaptive_network": torch.zeros(0, D)}, domains=[]
    )
    with pytest.raises(CheckpointError, match="for 3 classes and 0 domains"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["meta_prompt", "adaptive_network", "keys"])
def test_nan_and_infinity_are_refused(path: Path, name: str, value: float) -> None:
    tensor = getattr(make(), name).clone()
    tensor.view(-1)[-1] = value
    make(**{name: tensor}).save(path)
    with pytest.raises(CheckpointError, match=f"found {name} of torch.float32 with NaN, infinity"):
        load_checkpoint(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_another_dtype_is_refused(path: Path, dtype: torch.dtype) -> None:
    write_raw(path, {"keys": torch.zeros(N, M, W, dtype=dtype)})
    with pytest.raises(CheckpointError, match=f"found keys of {dtype} with NaN, .* a wrong dtype"):
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
    assert torch.equal(model.context, checkpoint.meta_prompt)
    assert torch.equal(model.adaptive_network, checkpoint.adaptive_network)
    assert torch.equal(model.keys, checkpoint.keys)
    assert model.temperature == 0.01
    assert model.logit_scale == tiny_backbone.logit_scale
    assert model.exact_logits(draw(2, D, seed=9)).shape == (2, C)


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
        ("temperature", "x", "wrong temperature"),
        ("temperature", 0.0, "wrong temperature"),
        ("temperature", float("nan"), "wrong temperature"),
        ("rounds", -1, "wrong rounds"),
        ("seed", 1.5, "wrong seed"),
        ("test_fraction", 1.0, "wrong test_fraction"),
        ("classes", [1, 2, 3], "wrong names"),
        ("preprocessing", {"size": [2]}, "wrong preprocessing"),
    ],
)
def test_metadata_of_a_wrong_type_is_refused(
    tiny_run: Path, tmp_path: Path, name: str, value: object, text: str
) -> None:
    good = load_checkpoint(tiny_run / "checkpoint.safetensors")
    metadata = dataclasses.asdict(good.info) | {name: value}
    path = tmp_path / "changed.safetensors"
    tensors = {t: getattr(good, t) for t in ("meta_prompt", "adaptive_network", "keys")}
    save_file(tensors, str(path), {"fedapt": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match=text):
        load_checkpoint(path)
