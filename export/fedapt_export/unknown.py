"""Calibration of the signal for unknown domains, on images outside the training set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt.core.names import ADAPTIVE_NETWORK
from fedapt.core.report import Reporter
from fedapt.data.collection import Collection
from fedapt.data.features import ImageEncoder, extract_features
from fedapt.data.folders import Sample
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint
from fedapt.onnx.image_encoder import image_encoder
from fedapt.training.methods.base import Fusable
from fedapt_export.images import open_images
from fedapt_runtime.unknown import UnknownSignal, calibrate_signal

KEEP = 0.95  # minimum share of images of known domains that are not flagged
_MIN_IMAGES = 20  # with fewer images, a single one decides a threshold at 95 %


def calibrate_unknown(
    checkpoint: Checkpoint,
    fusable: Fusable,
    data: Path | None,
    backbone: Backbone,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """The manifest's block `unknown`; None if it cannot be calibrated.

    Held-out images are the run's validation images; a domain without them uses its test images.

    Args:
        checkpoint: the checkpoint.
        fusable: its global model.
        data: a folder of domains, or None.
        backbone: the CLIP model, which encodes the images.
        reporter: receives the threshold, or the reason why there is none.
    """
    info = checkpoint.info
    network = fusable.head.adaptive_network.cpu().numpy()
    if ADAPTIVE_NETWORK not in checkpoint.learned or info.keys != info.domains or len(network) < 2:
        reporter.message("no signal for unknown domains: it requires keys of two domains or more")
        return None
    signal = None
    if data is not None:
        images = open_images(checkpoint, data)
        signal = calibrate_on(checkpoint, network, images, image_encoder(backbone))
    if signal is None:
        reporter.message(
            "no signal for unknown domains: it requires training images of every known domain and"
            f" {_MIN_IMAGES} held-out images"
        )
        return None
    reporter.message(
        f"unknown domains: scores above {signal.threshold:.3g} are flagged, which keeps"
        f" {100 * signal.kept:.1f} % of {signal.images} held-out images"
    )
    return signal.to_block()


def calibrate_on(
    checkpoint: Checkpoint,
    network: NDArray[np.float32],
    images: Collection,
    encoder: ImageEncoder,
) -> UnknownSignal | None:
    """The signal from these images; None if there are too few, or other domains.

    The centres come from the training images of each domain and class. The scale and the threshold
    come from held-out images.

    Args:
        checkpoint: names the known domains.
        network: the keys of the domains, float32 [domains, D].
        images: the images, split as in training.
        encoder: computes their features.
    """

    def features(samples: Sequence[Sample]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features of the readable images, with their classes."""
        paths = [images.root / sample.path for sample in samples]
        found = extract_features(paths, encoder)
        labels = np.array([sample.label for sample in samples], dtype=np.int64)
        return np.asarray(found.values), labels[found.kept]

    names = checkpoint.info.domains
    if not {*names} <= {*images.domains}:
        return None
    centres, domains, held_out = [], [], []
    for number, name in enumerate(names):
        values, labels = features(images.split.train[name])
        unit = values / np.linalg.norm(values, axis=-1, keepdims=True)
        for label in np.unique(labels):
            centre = unit[labels == label].mean(axis=0)
            centres.append(centre / np.linalg.norm(centre))
            domains.append(number)
        held_out.append(features(images.split.validation[name] or images.split.test[name])[0])
    kept_out = np.concatenate(held_out)
    if {*domains} != {*range(len(names))} or len(kept_out) < _MIN_IMAGES:
        return None
    return calibrate_signal(network, np.stack(centres), np.array(domains), kept_out, KEEP)
