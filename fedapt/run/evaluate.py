"""Evaluation of a checkpoint on a folder of images, with its split, classes and CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedapt.core.errors import UsageError
from fedapt.core.names import FUSED_METHODS
from fedapt.core.report import Reporter
from fedapt.data.collection import open_collection
from fedapt.data.domains import Domain
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.checkpoint import Checkpoint, load_checkpoint
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.device import choose_device
from fedapt.run.rebuild import rebuild_method
from fedapt.training.evaluate import Evaluation, evaluate, tell_low_routing, tell_untested
from fedapt.training.methods import Learned, Method


@dataclass(frozen=True)
class Trained:
    """A checkpoint's method, and the test images.

    Attributes:
        domains: domains of the images, each with its test images only.
    """

    checkpoint: Checkpoint
    backbone: Backbone
    domains: list[Domain]
    method: Method
    learned: Learned

    @property
    def bank_names(self) -> tuple[str, ...]:
        """Names of the banks that the method routes images to."""
        return self.method.bank_names(self.checkpoint.info.keys)

    def evaluate(self, reporter: Reporter, *, exact: bool = False) -> Evaluation:
        """Measure every domain; report domains without test images or with low routing.

        Args:
            exact: encode every image's own prompts instead of mixing text banks.
        """
        predict = None
        if exact:
            model = self.checkpoint.to_global_model(self.backbone)
            predict = lambda images, domain: model.exact_logits(images.features)  # noqa: E731
        trained = self.checkpoint.info.domains
        evaluation = evaluate(
            self.method, self.learned, self.domains, trained, self.bank_names, predict=predict
        )
        tell_untested(evaluation, reporter)
        tell_low_routing(evaluation, reporter)
        return evaluation


def open_trained(checkpoint: Checkpoint, data: Path, device: str, reporter: Reporter) -> Trained:
    """A checkpoint with the test images below `data`.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        CheckpointError: it is of another CLIP.
        DataError: the folders are wrong, or hold a class that the checkpoint does not know.
    """
    info = checkpoint.info
    images = open_collection(info.config.data, data, training=False)
    images = images.only("test").renumber(info.classes, "the checkpoint")
    depth = info.preprocessing.depth
    backbone = load_backbone(info.model, info.pretrained, choose_device(device), depth)
    checkpoint.check_backbone(backbone)
    domains = images.load(image_encoder(backbone), reporter, backbone.device, need_train=False)
    method, learned = rebuild_method(checkpoint, backbone, domains[0].test.table)
    return Trained(checkpoint, backbone, domains, method, learned)


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
        UsageError: `exact` for a method without mixed prompts.
    """
    checkpoint = load_checkpoint(path)
    method = checkpoint.info.method
    if exact and method not in FUSED_METHODS:
        raise UsageError(
            where="exact",
            found=f"a checkpoint of {method}",
            expected=f"one of {', '.join(FUSED_METHODS)}, which have mixed and exact prompts",
            next_step="leave `exact` out",
        )
    return open_trained(checkpoint, data, device, reporter).evaluate(reporter, exact=exact)
