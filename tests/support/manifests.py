"""A manifest for a backend that is not a file."""

from __future__ import annotations

from fedapt_runtime import Manifest, Preprocessing


def make_manifest(classes: tuple[str, ...], domains: tuple[str, ...]) -> Manifest:
    """A manifest of these names for images of 2 x 2 pixels."""
    return Manifest(
        classes=classes,
        domains=domains,
        preprocessing=Preprocessing((2, 2), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        clip={},
        method="fedapt",
        rounds=1,
        temperature=0.01,
        mixing="exact",
        precision="fp32",
        opset=20,
        checkpoint_sha256="",
    )
