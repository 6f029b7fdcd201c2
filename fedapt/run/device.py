"""Selection of the device of a job."""

from __future__ import annotations

import torch

from fedapt.core.errors import UsageError


def choose_device(device: str) -> str:
    """Resolve `auto` to `cuda` if available, else to `cpu`.

    Raises:
        UsageError: an unknown device, or cuda without one.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if device not in ("cpu", "cuda") or (device == "cuda" and not available):
        raise UsageError(
            where="device",
            found=device,
            expected="auto, cpu or cuda" if available else "auto or cpu: torch sees no CUDA device",
            next_step="choose one of these",
        )
    return device
