"""A checkpoint on a folder of images: the split of its training, its classes, its CLIP."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from fedapt.core.errors import DataError
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, Labelled, load_domains
from fedapt.data.folders import ImageFolders, scan_folders
from fedapt.data.splits import Split, split_folders
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import CheckpointInfo, load_checkpoint
from fedapt.model.image_encoder import image_encoder
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.run.device import choose_device
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
    """
    checkpoint = load_checkpoint(path)
    info = checkpoint.info
    folders = scan_folders(data, _present(info.class_names, data))
    labels = _match_classes(folders, info)
    # training images are neither needed nor met: only the test part is kept
    split = split_folders(folders, info.test_fraction, info.split_seed)
    split = Split(dict.fromkeys(folders.domains, ()), split.test)
    backbone = load_backbone(info.model, info.pretrained, choose_device(device))
    model = checkpoint.to_global_model(backbone)
    domains = load_domains(
        folders, split, image_encoder(backbone), reporter, backbone.device, need_train=False
    )
    domains = [_relabel(domain, labels) for domain in domains]
    zero_shot = zero_shot_features(backbone, info.classes)
    return evaluate(model, domains, info.domains, zero_shot, exact=exact)


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


def _relabel(domain: Domain, labels: torch.Tensor) -> Domain:
    test = Labelled(domain.test.features, labels.to(domain.test.labels.device)[domain.test.labels])
    return dataclasses.replace(domain, test=test)
