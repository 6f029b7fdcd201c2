"""The manifest: the description of a fused model, as JSON inside the ONNX file.

The export writes and the runtime reads the same class, so both always agree. The JSON is in the
ONNX file's `metadata_props` under the key `fedapt`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fedapt_runtime import integrity
from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.preprocess import Preprocessing

METADATA_KEY = "fedapt"
_SHA256 = re.compile("(?:[0-9a-f]{64})?")
ONNX, ONNXRUNTIME = "onnx", "onnxruntime"  # sets of operators
SCHEMA = 1  # raise when an older runtime would misread the file; added fields do not count


@dataclass(frozen=True)
class Manifest:
    """The metadata that a user of the model file needs beside its tensors.

    Attributes:
        classes: class names in the order of the logits.
        domains: domain names in the order of the domain weights.
        preprocessing: file -> uint8 array; normalisation is inside the graph.
        clip: OpenCLIP model name, pretrained tag and hash of the weights.
        method: the federated method that trained the checkpoint.
        rounds: rounds of training behind the checkpoint.
        temperature: tau of the domain weights.
        mixing: how text banks are mixed (`exact`: cosine to the renormalised mixture).
        precision: dtype of the weights inside the graph.
        opset: ONNX opset of the graph.
        operators: `onnx`, or `onnxruntime` for a graph with operators that only it has.
        checkpoint_sha256: hash of the checkpoint file that was fused.
        parity: figures of the parity report of the export.
        versions: versions of the software that exported the model.
        unknown: the signal for images from no known domain, see `unknown.UnknownSignal`; None if
            the export had no images to calibrate it.
        weights: name, size and hash of the file that holds the weights of a model above 2 GB; None
            where the ONNX file holds them.
        content_sha256: hash of the file's content, see `seal`; empty in files of older
            versions.
    """

    classes: tuple[str, ...]
    domains: tuple[str, ...]
    preprocessing: Preprocessing
    clip: dict[str, str]
    method: str
    rounds: int
    temperature: float
    mixing: str
    precision: str
    opset: int
    checkpoint_sha256: str
    parity: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA
    unknown: dict[str, Any] | None = None
    content_sha256: str = ""
    operators: str = ONNX
    weights: dict[str, Any] | None = None

    def to_json(self) -> str:
        """One line of JSON with sorted keys: the same manifest gives the same bytes."""
        fields = self._fields()
        if self.content_sha256:
            fields[integrity.KEY] = self.content_sha256
        return json.dumps(fields, sort_keys=True, ensure_ascii=False)

    def seal(self, content: Iterable[integrity.Part]) -> str:
        """The JSON with a hash of itself and of the content that it describes."""
        return integrity.seal(self._fields(), content)

    def _fields(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        del fields[integrity.KEY]
        if self.unknown is None:
            del fields["unknown"]
        if self.operators == ONNX:
            del fields["operators"]
        if self.weights is None:
            del fields["weights"]
        return fields

    def describe(self) -> dict[str, Any]:
        """Plain values for display, without the tensors of the signal (kilobytes of base64)."""
        fields = dataclasses.asdict(self)
        tensors = ("adaptive_network", "centres", "domains")
        if self.unknown is not None:
            fields["unknown"] = {k: v for k, v in self.unknown.items() if k not in tensors}
        return fields


def parse_manifest(text: str | None, where: object) -> Manifest:
    """Read and check a manifest.

    Args:
        text: the JSON under `METADATA_KEY`, or None when the file has no such entry.
        where: the file, for messages.

    Raises:
        ModelFileError: no manifest, a damaged one, or one of a newer schema.
    """
    export_again = "export the model again with `fedapt export`"
    if text is None:
        raise ModelFileError(
            where=where,
            found="an ONNX file without a fedapt manifest",
            expected="a model written by `fedapt export`",
            next_step=export_again,
        )
    try:
        fields = json.loads(text)
        schema = fields["schema"]
        if schema != SCHEMA:
            raise ModelFileError(
                where=where,
                found=f"a manifest of schema {schema!r}",
                expected=f"schema {SCHEMA}",
                next_step="install a fedapt-runtime that reads this schema, or " + export_again,
            )
        fields["preprocessing"] = Preprocessing.from_dict(fields["preprocessing"])
        for name in ("classes", "domains"):
            fields[name] = tuple(_check(name, fields[name], _is_names))
        # a later version adds fields without a new schema: they are left out
        known = {field.name for field in dataclasses.fields(Manifest)}
        manifest = Manifest(**{name: value for name, value in fields.items() if name in known})
        for name, is_right in _TYPES.items():
            _check(name, getattr(manifest, name), is_right)
        return manifest
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ModelFileError(
            where=where,
            found=f"a damaged manifest ({type(error).__name__}: {error})",
            expected="the manifest that `fedapt export` writes",
            next_step=export_again,
        ) from error


def _check(name: str, value: Any, is_right: Callable[[Any], bool]) -> Any:
    if not is_right(value):
        raise TypeError(f"{name} is {repr(value)[:60]}")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_temperature(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def is_weights(value: Any) -> bool:
    """Whether `Manifest.weights` names a file of the model's own folder, its size and its hash."""
    if not isinstance(value, dict):
        return False
    name: Any = value.get("file")
    is_name = isinstance(name, str) and name not in (".", "..")
    return (
        is_name
        and bool(re.fullmatch(r"[^/\\\0]+", name))
        and _is_count(value.get("bytes"))
        and _is_text(value.get("sha256"))
    )


_TYPES: dict[str, Callable[[Any], bool]] = {
    "clip": _is_texts,
    "method": _is_text,
    "rounds": _is_count,
    "temperature": _is_temperature,
    "mixing": _is_text,
    "precision": _is_text,
    "opset": _is_count,
    "operators": _is_text,
    "checkpoint_sha256": _is_text,
    "parity": lambda value: isinstance(value, dict),
    "versions": _is_texts,
    "unknown": lambda value: value is None or isinstance(value, dict),
    "weights": lambda value: value is None or is_weights(value),
    integrity.KEY: lambda value: _is_text(value) and bool(_SHA256.fullmatch(value)),
}
