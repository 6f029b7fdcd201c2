"""A node's images and CLIP, as its operator names them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from fedapt.core.errors import UsageError


@dataclass(frozen=True)
class Party:
    """What a node is told on its own machine, and tells nobody.

    Attributes:
        root: ROOT of ROOT/<domain>/<class>/<images>; other domains in it are not looked at.
        domain: the node's.
        name: by which the server knows it from others of its domain.
        model, pretrained: its CLIP, where the server's is a folder.
        device: `cpu` or `cuda`.
        secure: whether it takes part in secure rounds alone (`federation.secure`).
        max_clip: largest `federation.node_clip` of a run that it takes part in; 0 for any or none.
        min_noise: smallest `federation.node_noise`.
    """

    root: Path
    domain: str
    name: str = ""
    model: str = ""
    pretrained: str = ""
    device: str = "cpu"
    secure: bool = False
    max_clip: float = 0.0
    min_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_clip", "min_noise"):
            if not 0 <= (value := getattr(self, name)) < math.inf:  # NaN would refuse nothing
                raise UsageError(
                    where="the node's configuration",
                    shareable=True,
                    found=f"{name} = {value}",
                    expected="a number of 0 or more",
                    next_step="correct it",
                )
