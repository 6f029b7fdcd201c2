"""Fused models as files: one ONNX file, whose metadata hold the manifest."""

from __future__ import annotations

from pathlib import Path

import onnx

from fedapt.core.errors import ExportError
from fedapt.core.files import write_bytes
from fedapt_runtime import Manifest
from fedapt_runtime.manifest import METADATA_KEY, parse_manifest
from fedapt_runtime.onnx_file import check_content, check_one_file


def read_manifest(model: onnx.ModelProto, where: object) -> Manifest:
    """The manifest of a model's `metadata_props`.

    Raises:
        ModelFileError: there is none, or it is damaged or of another schema.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return parse_manifest(metadata.get(METADATA_KEY), where)


def read_model(path: Path) -> tuple[onnx.ModelProto, Manifest]:
    """A fused model and its manifest.

    Raises:
        ExportError: it is missing, or no ONNX.
        ModelFileError: it has no manifest, a damaged one, or one of another schema; its weights are
            in another file, or not those that the manifest was written for.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors and OSError share no useful base class
        raise ExportError(
            where=path,
            found=f"a file that onnx cannot read ({' '.join(str(error).split())[:200]})",
            expected="a model written by `fedapt export`",
            next_step="check the path",
        ) from error
    check_one_file(path)
    manifest = read_manifest(model, path)
    check_content(path, METADATA_KEY)
    return model, manifest


def write_model(model: onnx.ModelProto, manifest: Manifest, out: Path) -> None:
    """Write a fused graph with its manifest, completely or not at all.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    del model.metadata_props[:]
    write_serialised(model.SerializeToString(), manifest, out)


def write_serialised(content: bytes, manifest: Manifest, out: Path) -> None:
    """The same for a graph without metadata that is serialised already.

    The metadata follow the other fields: fields of a message may be in any order.

    Source: Protocol Buffers, "Encoding", "Message Structure".
    """
    metadata = onnx.ModelProto()
    onnx.helper.set_model_props(metadata, {METADATA_KEY: manifest.seal([content])})
    write_bytes(out, content, metadata.SerializeToString())
