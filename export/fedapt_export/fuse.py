"""Image tower + head -> the fused graph, one ONNX model that carries its manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from fedapt.core.errors import CheckpointError, ExportError
from fedapt.core.names import is_path
from fedapt.core.versions import software_versions
from fedapt.model.backbone import Backbone, hash_tensors
from fedapt.model.checkpoint import Checkpoint
from fedapt.model.head import Head
from fedapt.model.image_tower import FEATURES
from fedapt.onnx.tower import image_tower_to_onnx, read_tower
from fedapt.onnx.trace import OPSET
from fedapt.onnx.types import copy_structure, without_weights
from fedapt.run.rebuild import rebuild_method
from fedapt.training.methods.base import ALL_DOMAINS, Fusable
from fedapt_export.head import LOGITS, WEIGHTS, build_head, swappable_inputs
from fedapt_runtime import Manifest
from fedapt_runtime.manifest import ONNX


def fuse(tower: onnx.ModelProto, head: Head, label: str) -> onnx.ModelProto:
    """The fused graph of an image tower and a head, without a manifest.

    Input `images` uint8 [batch, height, width, 3], and the head's tensors as inputs with defaults;
    outputs `logits` float32 [batch, C],
    `domain_weights` float32 [batch, N] and `features` float32 [batch, D], not normalised.

    Args:
        tower: result of `fedapt.onnx.tower.read_tower`, in any precision.
        label: label of the CLIP, for errors.

    Raises:
        ExportError: the graph is not valid ONNX.
    """
    head_model = build_head(head)
    # the head's operators are the same in every opset that a tower may ask for
    opset = read_opset(tower)
    head_model.opset_import[0].version = opset
    try:
        fused = _join(tower, head_model)
        fused.graph.input.extend(swappable_inputs(head.banks.shape[-1]))
        onnx.checker.check_model(without_weights(fused), full_check=True)
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


def _join(tower: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of both, connected by the name of the features; logits come first.

    The tower's weights are copied once. `onnx.compose` would hold several copies.
    """
    fused = copy_structure(tower)
    graph = fused.graph
    graph.initializer.extend(tower.graph.initializer)
    graph.name = "fedapt"
    outputs = {output.name: output for output in (*tower.graph.output, *head.graph.output)}
    del graph.output[:]
    graph.output.extend(outputs[name] for name in (LOGITS, WEIGHTS, FEATURES))
    for field in ("node", "initializer", "value_info"):
        getattr(graph, field).extend(getattr(head.graph, field))
    return fused


def read_fusable(
    checkpoint: Checkpoint, backbone: Backbone, mixing: str = "exact", owner: str = ""
) -> Fusable:
    """A checkpoint's global model as a tower and a head.

    Args:
        mixing: mixing of the banks, see `Head.mixing`.
        owner: the client whose model is fused, for a method with one model per client.

    Raises:
        CheckpointError: the method cannot be fused, the CLIP differs, or there is no such
            client.
    """
    method, learned = rebuild_method(checkpoint, backbone)
    info, client = checkpoint.info, None
    if method.not_fused:
        raise CheckpointError(
            where="the checkpoint",
            found=f"the method {info.method}: {method.not_fused}",
            expected="a method whose classes are fixed vectors behind the image tower",
            next_step="train another method; `fedapt evaluate` accepts any method",
        )
    if "client" in method.owned.values():
        names = [c.name for c in method.setting.clients]
        if owner not in names:
            raise CheckpointError(
                where="the checkpoint",
                found=f"the method {info.method}, and no client {owner!r}",
                expected=f"a client whose model is exported: {', '.join(names)}",
                next_step="name the client: each client has its own model",
            )
        client = names.index(owner)
    fusable = method.fuse(learned, info.keys, client)
    return replace(fusable, head=replace(fusable.head, mixing=mixing))


def read_fusable_tower(fusable: Fusable, backbone: Backbone) -> onnx.ModelProto:
    """The tower of a global model as ONNX: the CLIP's own, from the cache, or another.

    Raises:
        ExportError: the tower cannot be traced.
    """
    if fusable.tower is None:
        return read_tower(backbone)
    return image_tower_to_onnx(backbone, fusable.tower)


def build_manifest(
    checkpoint: Checkpoint,
    fusable: Fusable,
    checkpoint_sha256: str,
    parity: dict[str, object],
    *,
    mixing: str = "exact",
    precision: str = "fp32",
    opset: int = OPSET,
    operators: str = ONNX,
) -> Manifest:
    """The manifest of a checkpoint's fused graph."""
    info = checkpoint.info
    clip = _describe_clip(info.model, info.pretrained, info.clip_sha256)
    if fusable.tower is not None:  # no head for the CLIP's own features fits behind it
        digest = hash_tensors(checkpoint.learned.items(), info.clip_sha256.encode())
        clip |= {"sha256": digest, "trained_from": info.clip_sha256}
    return Manifest(
        classes=info.classes,
        domains=fusable.names,
        preprocessing=info.preprocessing,
        clip=clip,
        method=info.method,
        rounds=info.rounds,
        temperature=fusable.head.temperature,
        mixing=mixing,
        precision=precision,
        opset=opset,
        operators=operators,
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
    """The manifest of zero-shot CLIP as a fused graph: one domain, no training."""
    return Manifest(
        classes=class_names,
        domains=ALL_DOMAINS,
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
