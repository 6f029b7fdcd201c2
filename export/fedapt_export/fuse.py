"""Image tower + head -> the fused graph, one ONNX model that carries its manifest."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import compose

from fedapt.core.errors import ExportError
from fedapt.core.names import is_path
from fedapt.core.versions import software_versions
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint
from fedapt.model.image_tower import FEATURES
from fedapt.model.onnx_trace import OPSET
from fedapt_export.head import LOGITS, WEIGHTS, Head, build_head, swappable_inputs
from fedapt_runtime import Manifest, Preprocessing
from fedapt_runtime.manifest import METADATA_KEY, parse_manifest


def fuse(tower: onnx.ModelProto, head: Head, label: str) -> onnx.ModelProto:
    """The fused graph of an image tower and a head, without a manifest.

    Input `images` uint8 [batch, height, width, 3], and the head's tensors as inputs with defaults;
    outputs `logits` float32 [batch, C],
    `domain_weights` float32 [batch, N] and `features` float32 [batch, D], not normalised.

    Args:
        tower: as `model.image_encoder.read_tower` gives it, in any precision.
        label: of the CLIP, for errors.

    Raises:
        ExportError: the graph is not valid ONNX.
    """
    head_model = build_head(head)
    # the head's operators are the same in every opset that a tower may ask for
    opset = read_opset(tower)
    head_model.opset_import[0].version = opset
    try:
        fused: onnx.ModelProto = compose.merge_models(
            tower,
            head_model,
            io_map=[(FEATURES, FEATURES)],
            outputs=[LOGITS, WEIGHTS, FEATURES],
            name="fedapt",
        )
        _put_in_order(fused, opset)
        fused.graph.input.extend(swappable_inputs(head.banks.shape[-1]))
        onnx.checker.check_model(fused, full_check=True)
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            where=f"model {label}",
            found=f"a graph that is not valid ONNX ({' '.join(str(error).split())[:300]})",
            expected="a valid graph",
            next_step="report this with the model's name and the versions of torch and onnx",
        ) from error
    fused.producer_name = "fedapt"
    return fused


def read_opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a graph is written in."""
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _put_in_order(model: onnx.ModelProto, opset: int) -> None:
    """Logits first, and one opset entry, where merging leaves one for each part."""
    outputs = {output.name: output for output in model.graph.output}
    ordered = [outputs[name] for name in (LOGITS, WEIGHTS, FEATURES)]
    del model.graph.output[:]
    model.graph.output.extend(ordered)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", opset))


def build_manifest(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    parity: dict[str, object],
    *,
    mixing: str = "exact",
    precision: str = "fp32",
    opset: int = OPSET,
) -> Manifest:
    """The manifest of a checkpoint's fused graph."""
    info = checkpoint.info
    return Manifest(
        classes=info.classes,
        domains=info.keys,
        preprocessing=Preprocessing.from_dict(info.preprocessing),
        clip=_describe_clip(info.model, info.pretrained, info.clip_sha256),
        method=info.method,
        rounds=info.rounds,
        temperature=info.config.prompt.temperature,
        mixing=mixing,
        precision=precision,
        opset=opset,
        checkpoint_sha256=checkpoint_sha256,
        parity=parity,
        versions=software_versions() | {"onnx": onnx.__version__},
    )


def _describe_clip(model: str, pretrained: str, sha256: str) -> dict[str, str]:
    # a folder or weights file by its last name only: paths of the exporting machine stay there
    return {
        "model": Path(model).name if is_path(model) else model,
        "pretrained": Path(pretrained).name if is_path(pretrained) else pretrained,
        "sha256": sha256,
    }


def build_zero_shot_manifest(backbone: Backbone, class_names: tuple[str, ...]) -> Manifest:
    """The manifest of zero-shot CLIP as a fused graph: one domain, nothing trained."""
    return Manifest(
        classes=class_names,
        domains=("all",),
        preprocessing=backbone.preprocessing,
        clip=_describe_clip(backbone.name, backbone.pretrained, backbone.sha256),
        method="zero-shot",
        rounds=0,
        temperature=1.0,
        mixing="exact",
        precision="fp32",
        opset=OPSET,
        checkpoint_sha256="",
        versions=software_versions() | {"onnx": onnx.__version__},
    )


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
        ModelFileError: it has no manifest, a damaged one, or one of another schema.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's errors and OSError share no useful base class
        raise ExportError(
            where=path,
            found=f"a file that onnx cannot read ({' '.join(str(error).split())[:200]})",
            expected="a model written by `fedapt export`",
            next_step="check the path",
        ) from error
    return model, read_manifest(model, path)


def attach_manifest(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Put the manifest into the model's `metadata_props`."""
    onnx.helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
