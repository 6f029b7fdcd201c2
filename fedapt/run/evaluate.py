"""A checkpoint on a folder of images: the split of its training, its classes, its CLIP."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from fedapt.core.errors import DataError, UsageError
from fedapt.core.names import FUSED_METHODS
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, ImageSet, load_domains
from fedapt.data.folders import ImageFolders, scan_folders
from fedapt.data.splits import Split, split_folders
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import CheckpointInfo, load_checkpoint
from fedapt.model.image_encoder import image_encoder
from fedapt.run.device import choose_device
from fedapt.run.rebuild import rebuild_method
from fedapt.train.evaluate import Evaluation, evaluate


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
            where="--exact",
            found=f"a checkpoint of {info.method}",
            expected=f"one of {', '.join(FUSED_METHODS)}, whose prompts may be mixed or exact",
            next_step="leave --exact out",
        )
    folders = scan_folders(data, _present(dict(info.config.data.class_names), data))
    labels = _match_classes(folders, info)
    # training images are neither needed nor met: only the test part is kept
    split = split_folders(folders, info.config.data.test_fraction, info.config.data.split_seed)
    none: dict[str, tuple[()]] = dict.fromkeys(folders.domains, ())
    backbone = load_backbone(info.model, info.pretrained, choose_device(device))
    checkpoint.check_backbone(backbone)
    domains = load_domains(
        folders,
        Split(none, split.test, none),
        image_encoder(backbone),
        reporter,
        backbone.device,
        need_train=False,
    )
    domains = _relabel(domains, labels)
    method, learned = rebuild_method(checkpoint, backbone, domains[0].test.table)
    predict = None
    if exact:
        model = checkpoint.to_global_model(backbone)
        predict = lambda images, domain: model.exact_logits(images.features)  # noqa: E731
    names = method.bank_names(info.keys)
    return evaluate(method, learned, domains, info.domains, names, predict=predict)


def _present(class_names: dict[str, str], data: Path) -> dict[str, str]:
    """The renamings whose folders these data have."""
    here = {folder.name for folder in data.glob("*/*")} if data.is_dir() else set()
    return {folder: name for folder, name in class_names.items() if folder in here}


def _match_classes(folders: ImageFolders, info: CheckpointInfo) -> torch.Tensor:
    known = {name: index for index, name in enumerate(info.classes)}
    unknown = [name for name in folders.class_names if name not in known]
    if unknown:
        raise DataError(
            where=folders.root,
            found=f"the class {unknown[0]!r}",
            expected=f"classes of the checkpoint: {', '.join(info.classes)}",
            next_step="evaluate on images of these classes",
        )
    return torch.tensor([known[name] for name in folders.class_names])


def _relabel(domains: list[Domain], labels: torch.Tensor) -> list[Domain]:
    """The same domains with the checkpoint's class indices."""
    table = domains[0].test.table
    table = dataclasses.replace(table, labels=labels.to(table.labels.device)[table.labels])
    return [
        Domain(d.name, *(ImageSet(table, part.rows) for part in (d.train, d.test, d.validation)))
        for d in domains
    ]
