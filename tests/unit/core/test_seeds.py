"""Child seeds: one number per purpose, for ever."""

from __future__ import annotations

import hashlib
from itertools import product

import pytest

from fedapt.core.seeds import child_seed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, "key", 0), 5_295_617_363_626_549_856),
        ((0, "context"), 2_565_831_334_389_315_390),
        ((7, "batches", 3, 1), 111_327_471_477_617_907),
    ],
)
def test_the_numbers_never_change(arguments: tuple[int, str], expected: int) -> None:
    assert child_seed(*arguments) == expected


def test_a_number_is_the_top_63_bits_of_a_hash() -> None:
    digest = hashlib.sha256(b"7/batches/3/1").hexdigest()
    assert child_seed(7, "batches", 3, 1) == int(digest[:16], 16) // 2


def test_every_purpose_and_index_has_a_number_of_its_own() -> None:
    drawn = [child_seed(*a) for a in product(range(5), ("key", "batches"), range(11), range(11))]
    drawn += [child_seed(s, "key", i) for s in range(5) for i in range(11)]
    drawn += [child_seed(s, "context") for s in range(5)]
    assert len(set(drawn)) == len(drawn) == 5 * 2 * 121 + 55 + 5


def test_torch_and_numpy_take_every_number() -> None:
    drawn = [child_seed(seed, "x") for seed in range(1000)]
    assert all(0 <= number < 2**63 for number in drawn)
    assert max(drawn) > 2**62  # the range is used
