"""Metadata of a file: checkpoint, head, model or TensorRT engine."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from safetensors import SafetensorError, safe_open

from fedapt.core.errors import FileError
from fedapt.core.files import hash_file
from fedapt.model.checkpoint import load_checkpoint
from fedapt.onnx.types import count_bytes
from fedapt_export.model_file import read_manifest
from fedapt_runtime.backends.engine_file import description_path, read_engine_file
from fedapt_runtime.head import read_head
from fedapt_runtime.onnx_file import check_content, open_onnx


def describe(path: Path) -> dict[str, Any]:
    """Plain values for JSON: `kind`, `file`, `bytes`, `sha256`, and the metadata of the file.

    Raises:
        FileError: the file does not exist or is not a fedapt file.
        CheckpointError, ModelFileError: the fedapt file is damaged.
    """
    if path.suffix == ".engine":
        return _describe_engine(path)
    facts = {"file": str(path), "bytes": _size(path), "sha256": hash_file(path)}
    names = _tensor_names(path)
    if names is None:
        return facts | _describe_model(path)
    if "text_banks" in names:
        head = read_head(path)
        shapes = {name: list(tensor.shape) for name, tensor in head.tensors.items()}
        return {"kind": "head"} | facts | {"tensors": shapes} | head.manifest.describe()
    checkpoint = load_checkpoint(path)
    tensors = {name: list(tensor.shape) for name, tensor in sorted(checkpoint.tensors.items())}
    info = {"method": checkpoint.info.method} | dataclasses.asdict(checkpoint.info)
    return {"kind": "checkpoint"} | facts | {"tensors": tensors} | info


def _describe_engine(path: Path) -> dict[str, Any]:
    facts = {"kind": "engine", "file": str(path), "bytes": _size(path)}
    engine = read_engine_file(path)  # also checks the description
    description: dict[str, Any] = json.loads(description_path(path).read_text("utf-8"))
    sha256 = description.pop("engine_sha256")
    del description["manifest"]
    return facts | {"sha256": sha256} | description | engine.manifest.describe()


def _size(path: Path) -> int:
    if not path.is_file():
        raise _refuse(path, "no such file" if not path.exists() else "not a file")
    return path.stat().st_size


def _tensor_names(path: Path) -> set[str] | None:
    try:
        with safe_open(str(path), framework="numpy") as stream:
            return set(stream.keys())
    except (SafetensorError, OSError):
        return None


def _describe_model(path: Path) -> dict[str, Any]:
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base class
        raise _refuse(path, "a file that is neither safetensors nor ONNX") from error
    content = open_onnx(path)
    manifest = read_manifest(model, path)
    check_content(path, content)
    defaults = {initializer.name for initializer in model.graph.initializer}
    return {
        "kind": "model",
        "inputs": {v.name: _type(v) for v in model.graph.input if v.name not in defaults},
        "outputs": {v.name: _type(v) for v in model.graph.output},
        "swappable": sorted(v.name for v in model.graph.input if v.name in defaults),
        "weight_bytes": _bytes_by_type(model),
        "nodes": dict(Counter(n.op_type for n in model.graph.node).most_common()),
    } | manifest.describe()


def _type(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} [{', '.join(dims)}]"


def _bytes_by_type(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of weights by dtype, which show the file's actual precision."""
    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        sizes[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += count_bytes(tensor)
    return dict(sizes.most_common())


def _refuse(path: Path, found: str) -> FileError:
    return FileError(
        where=path,
        found=found,
        expected="a fedapt checkpoint, head, model or TensorRT engine",
        next_step="check the path",
    )
