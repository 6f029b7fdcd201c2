"""When a compute precision may be taken unasked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fedapt_runtime.agreement import Agreement, read_agreement
from tests.support.manifests import make_manifest


@pytest.mark.parametrize(
    ("images", "changed", "max_share", "is_enough"),
    [
        # 1 - 0.05 ** (1 / n): 0.97 ** 98 = 0.0505, 0.97 ** 99 = 0.0490
        (98, 0, 0.03011, False),
        (99, 0, 0.02981, True),
        (506, 0, 0.005903, True),
        (100_000, 1, 1.0, False),
        (0, 0, 1.0, False),
    ],
)
def test_no_change_in_enough_images(
    images: int, changed: int, max_share: float, is_enough: bool
) -> None:
    found = Agreement(images, changed)
    assert found.max_share == pytest.approx(max_share, rel=1e-3)
    assert found.is_enough is is_enough


def test_it_says_so() -> None:
    told = "changed no label of 506 images (at most 0.6 % at 95 % confidence)"
    assert str(Agreement(506, 0)) == told
    assert str(Agreement(506, 3)) == "changed 3 of 506 labels"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"images": 200, "changed": 1, "feature_difference": 0.1}, Agreement(200, 1)),
        ({"images": 200}, None),
        ({"images": 200, "changed": 201}, None),
        ({"images": 200, "changed": -1}, None),
        ({"images": True, "changed": 0}, None),
        ("none", None),
    ],
)
def test_what_the_manifest_says(entry: Any, expected: Agreement | None) -> None:
    plain = make_manifest(("a", "b"), ("x",))
    manifest = dataclasses.replace(plain, parity={"computed_in": {"bf16": entry}})
    assert read_agreement(manifest, "bf16") == expected
    assert read_agreement(plain, "bf16") is None
    assert read_agreement(dataclasses.replace(plain, parity={"computed_in": [1]}), "bf16") is None
