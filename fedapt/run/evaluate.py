"""A checkpoint on a folder of images: the split of its training, its classes, its CLIP."""

from __future__ import annotations

from pathlib import Path

from fedapt.core.errors import UsageError
from fedapt.core.names import FUSED_METHODS
from fedapt.core.report import Reporter
from fedapt.data.collection import open_collection
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.device import choose_device
from fedapt.run.rebuild import rebuild_method
from fedapt.training.evaluate import Evaluation, evaluate, tell_low_routing, tell_untested


def evaluate_checkpoint(
    path: Path, data: Path, *, exact: bool, device: str, reporter: Reporter
) -> Evaluation:
    """Measure a checkpoint on the test images below `data`.

    Args:
        exact: encode every image's own prompts instead of mixing text banks.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        CheckpointError: damaged, or of another CLIP.
        DataError: the folders are wrong, or hold a class that the checkpoint does not know.
        UsageError: exact prompts of a method that has no others.
    """
    checkpoint = load_checkpoint(path)
    info = checkpoint.info
    if exact and info.method not in FUSED_METHODS:
        raise UsageError(
            where="exact",
            found=f"a checkpoint of {info.method}",
            expected=f"one of {', '.join(FUSED_METHODS)}, whose prompts may be mixed or exact",
            next_step="leave `exact` out",
        )
    images = open_collection(info.config.data, data, training=False)
    images = images.only("test").renumber(info.classes, "the checkpoint")
    depth = info.preprocessing.depth
    backbone = load_backbone(info.model, info.pretrained, choose_device(device), depth)
    checkpoint.check_backbone(backbone)
    domains = images.load(image_encoder(backbone), reporter, backbone.device, need_train=False)
    method, learned = rebuild_method(checkpoint, backbone, domains[0].test.table)
    predict = None
    if exact:
        model = checkpoint.to_global_model(backbone)
        predict = lambda images, domain: model.exact_logits(images.features)  # noqa: E731
    names = method.bank_names(info.keys)
    evaluation = evaluate(method, learned, domains, info.domains, names, predict=predict)
    tell_untested(evaluation, reporter)
    tell_low_routing(evaluation, reporter)
    return evaluation
