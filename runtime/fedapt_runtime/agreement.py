"""The agreement of a compute precision with float32: the labels that it changed in the export.

A backend may multiply float32 matrices of the graph in bfloat16. The export counts the labels that
this changes on its images, and the manifest keeps the count. `auto` selects the precision only if
the maximum share (`max_share`) is at most `MAX_SHARE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedapt_runtime.manifest import Manifest

PARITY_KEY = "computed_in"  # in the manifest's `parity`: compute precision -> agreement
CONFIDENCE = 0.95
MAX_SHARE = 0.03  # share of changed labels, at that confidence; 99 images without a change suffice


@dataclass(frozen=True)
class Agreement:
    """The comparison of a compute precision with float32 on the images of the export.

    Attributes:
        images: number of real images that were compared.
        changed: number of images whose label differs.
    """

    images: int
    changed: int

    @property
    def max_share(self) -> float:
        """Maximum share of labels that change, at 95 % confidence; 1 if any label changed.

        Source: Clopper and Pearson 1934; with no change in n images, 1 - 0.05 ** (1 / n).
        """
        if self.changed or not self.images:
            return 1.0
        return float(1 - (1 - CONFIDENCE) ** (1 / self.images))

    @property
    def is_enough(self) -> bool:
        """Whether `auto` may select this precision."""
        return self.max_share <= MAX_SHARE

    def __str__(self) -> str:
        if self.changed:
            return f"changed {self.changed} of {self.images} labels"
        share = f"at most {100 * self.max_share:.1f} % at {100 * CONFIDENCE:.0f} % confidence"
        return f"changed no label of {self.images} images ({share})"


def read_agreement(manifest: Manifest, compute: str) -> Agreement | None:
    """Read the export's measurement from the manifest; None if there is none."""
    computed: Any = manifest.parity.get(PARITY_KEY)
    entry = computed.get(compute) if isinstance(computed, dict) else None
    if not isinstance(entry, dict):
        return None
    images, changed = entry.get("images"), entry.get("changed")
    if type(images) is not int or type(changed) is not int or not 0 <= changed <= images:
        return None
    return Agreement(images, changed)
