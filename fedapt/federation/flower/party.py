"""A node's images and CLIP, from the operator's configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from fedapt.core.errors import UsageError


@dataclass(frozen=True)
class Party:
    """The operator's configuration of a node, set on the node's own machine.

    Attributes:
        root: ROOT of ROOT/<domain>/<class>/<images>; other domains in it are not read.
        domain: the node's domain.
        name: distinguishes the node from others of its domain.
        model, pretrained: the node's CLIP, if the server's CLIP is a folder.
        device: `cpu` or `cuda`.
        secure: the node takes part in secure rounds only (`federation.secure`).
        max_clip: maximum `federation.node_clip` that the node accepts; 0 for any or none.
        min_noise: minimum `federation.node_noise` that the node accepts.
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
            if (
                not 0 <= (value := getattr(self, name)) < math.inf
            ):  # NaN would pass every comparison
                raise UsageError(
                    where="the node's configuration",
                    shareable=True,
                    found=f"{name} = {value}",
                    expected="a number of 0 or more",
                    next_step=f"correct {name}",
                )
