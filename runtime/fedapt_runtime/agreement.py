"""What the manifest says of a compute precision: how many labels it changed in the export.

A backend may multiply in bfloat16 what the graph has in float32. The export counts on its images
how many labels that changes; this says whether it is little enough to be taken unasked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedapt_runtime.manifest import Manifest

PARITY_KEY = "computed_in"  # in the manifest's `parity`: compute precision -> agreement
CONFIDENCE = 0.95
MAX_SHARE = 0.03  # of labels that may change at that confidence: takes 99 images without a change


@dataclass(frozen=True)
class Agreement:
    """A compute precision beside float32, on the images of the export.

    Attributes:
        images: real images that were compared.
        changed: how many of them have another best class.
    """

    images: int
    changed: int

    @property
    def max_share(self) -> float:
        """The share of labels that change, at most, at 95 % confidence; 1 where any changed.

        Source: Clopper and Pearson 1934; with no change in n images, 1 - 0.05 ** (1 / n).
        """
        if self.changed or not self.images:
            return 1.0
        return float(1 - (1 - CONFIDENCE) ** (1 / self.images))

    @property
    def is_enough(self) -> bool:
        """Whether `auto` may take it."""
        return self.max_share <= MAX_SHARE

    def __str__(self) -> str:
        if self.changed:
            return f"changed {self.changed} of {self.images} labels"
        share = f"at most {100 * self.max_share:.1f} % at {100 * CONFIDENCE:.0f} % confidence"
        return f"changed no label of {self.images} images ({share})"


def read_agreement(manifest: Manifest, compute: str) -> Agreement | None:
    """What the export measured; None where there is no such measurement."""
    computed: Any = manifest.parity.get(PARITY_KEY)
    entry = computed.get(compute) if isinstance(computed, dict) else None
    if not isinstance(entry, dict):
        return None
    images, changed = entry.get("images"), entry.get("changed")
    if type(images) is not int or type(changed) is not int or not 0 <= changed <= images:
        return None
    return Agreement(images, changed)
