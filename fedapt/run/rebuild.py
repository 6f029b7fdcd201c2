"""Rebuild a checkpoint's method without its clients' images."""

from __future__ import annotations

from fedapt.data.domains import ImageTable
from fedapt.data.partition import ClientInfo
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint
from fedapt.training.methods import METHODS, Method, Setting
from fedapt.training.methods.base import Learned


def rebuild_method(
    checkpoint: Checkpoint, backbone: Backbone, table: ImageTable | None = None
) -> tuple[Method, Learned]:
    """The method of a checkpoint and its learned tensors, on the backbone's device.

    Args:
        table: the images to predict; None if predictions start from features.

    Raises:
        CheckpointError: it was trained on another CLIP.
    """
    checkpoint.check_backbone(backbone)
    info = checkpoint.info
    clients = (
        ClientInfo(index, name_client(info.domains, info.clients, index), domain, 0)
        for index, domain in enumerate(info.clients)
    )
    setting = Setting(
        config=info.config,
        backbone=backbone,
        class_names=info.classes,
        n_keys=len(info.keys),
        clients=tuple(clients),
        known_keys=checkpoint.keys,
        table=table,
    )
    learned = {name: tensor.to(backbone.device) for name, tensor in checkpoint.learned.items()}
    return METHODS[info.method](setting), learned


def name_client(domains: tuple[str, ...], clients: tuple[int, ...], index: int) -> str:
    """The client's name, as in `data.partition`: its domain, with a number if it is shared."""
    domain = clients[index]
    name = domains[domain]
    if clients.count(domain) == 1:
        return name
    return f"{name}/{clients[:index].count(domain) + 1}"
