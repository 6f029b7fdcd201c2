"""The memory that work on an image tower takes, checked before the work."""

from __future__ import annotations

from fedapt.core.errors import ExportError
from fedapt.model.backbone import Backbone
from fedapt_runtime.machine import usable_memory

_PROGRAM_BYTES = 600_000_000  # Python, torch and ONNX Runtime


def check_memory(backbone: Backbone, times: float, work: str) -> None:
    """Refuse work for which this process has too little memory.

    Args:
        backbone: the CLIP model. Its own weights are mapped and do not count.
        times: memory of the work in weights of the image tower (`benchmarks/large.py`).
        work: name of the work, for the message.

    Raises:
        ExportError: see above.
    """
    visual = backbone.clip.get_submodule("visual")
    weights = sum(p.numel() * p.element_size() for p in visual.parameters())
    needed, memory = _PROGRAM_BYTES + times * weights, usable_memory()
    if memory is not None and needed > memory:
        raise ExportError(
            where=f"model {backbone.label}",
            found=f"{memory / 1e9:.1f} GB of memory",
            expected=f"about {needed / 1e9:.1f} GB to {work}",
            next_step="use a machine with more memory, or choose a smaller model",
        )
