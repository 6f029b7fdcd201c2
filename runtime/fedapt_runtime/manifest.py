"""The manifest: what a fused model is, as JSON inside the ONNX file.

One class is both written by the export and read here, so the two cannot drift apart. It stands in
the ONNX file's `metadata_props` under the key `fedapt`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.preprocess import Preprocessing

METADATA_KEY = "fedapt"
SCHEMA = 1  # raise when an older runtime would misread the file; added fields do not count


@dataclass(frozen=True)
class Manifest:
    """Everything that a user of the model file has to know beside its tensors.

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
        checkpoint_sha256: hash of the checkpoint file that was fused.
        parity: figures of the parity report of the export.
        versions: versions of the software that exported the model.
        unknown: the signal for images from no known domain, see `unknown.UnknownSignal`; None where
            the export had no images to calibrate it on.
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

    def to_json(self) -> str:
        """One line of JSON with sorted keys: the same manifest gives the same bytes."""
        fields = dataclasses.asdict(self)
        if self.unknown is None:
            del fields["unknown"]
        return json.dumps(fields, sort_keys=True, ensure_ascii=False)

    def describe(self) -> dict[str, Any]:
        """Plain values for people: all but the tensors of the signal, kilobytes of base64."""
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
                found=f"a manifest of schema {schema}",
                expected=f"schema {SCHEMA}",
                next_step="install the fedapt-runtime that belongs to it, or " + export_again,
            )
        fields["preprocessing"] = Preprocessing.from_dict(fields["preprocessing"])
        fields["classes"] = tuple(str(name) for name in fields["classes"])
        fields["domains"] = tuple(str(name) for name in fields["domains"])
        # a later version adds fields without a new schema: they are left out
        known = {field.name for field in dataclasses.fields(Manifest)}
        return Manifest(**{name: value for name, value in fields.items() if name in known})
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ModelFileError(
            where=where,
            found=f"a damaged manifest ({type(error).__name__}: {error})",
            expected="the manifest that `fedapt export` writes",
            next_step=export_again,
        ) from error
