"""Any `threshold` shares give the secret back; sealed ones open for their reader alone."""

from __future__ import annotations

import itertools
import os

import pytest

from fedapt.federation.flower.secure.masks import draw_key, public_key
from fedapt.federation.flower.secure.shares import (
    SEALED_BYTES,
    SHARE_BYTES,
    combine,
    seal,
    split,
    unseal,
)


def test_any_three_of_five_give_the_secret() -> None:
    secret = os.urandom(32)
    shares = split(secret, 3, 5)
    assert [len(share) for share in shares] == [SHARE_BYTES] * 5
    for some in itertools.permutations(shares, 3):
        assert combine(some) == secret


def test_two_of_three_do_not() -> None:
    secret = os.urandom(32)
    for some in itertools.combinations(split(secret, 3, 5), 2):
        try:
            assert combine(some) != secret
        except ValueError:
            continue


def test_shares_that_do_not_belong_together() -> None:
    one, other = split(os.urandom(32), 3, 5), split(os.urandom(32), 3, 5)
    with pytest.raises(ValueError, match="a share twice"):
        combine([one[0], one[0], one[1]])
    with pytest.raises(ValueError, match=r"combine shares|a secret of \d+ bytes"):
        combine([one[0], one[1], other[2]])


def test_a_sealed_share_opens_for_its_reader_alone() -> None:
    sender, reader, other = draw_key(), draw_key(), draw_key()
    plain = os.urandom(2 * SHARE_BYTES)
    sealed = seal(sender, public_key(reader), "from 0 to 1 in round 0", plain)
    assert len(sealed) == SEALED_BYTES
    assert plain[:16] not in sealed
    opened = unseal(reader, public_key(sender), "from 0 to 1 in round 0", sealed)
    assert opened == plain
    assert seal(sender, public_key(reader), "from 0 to 1 in round 0", plain) != sealed
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for private, public, route, box in (
        (other, sender, "from 0 to 1 in round 0", sealed),
        (reader, other, "from 0 to 1 in round 0", sealed),
        (reader, sender, "from 1 to 0 in round 0", sealed),
        (reader, sender, "from 0 to 1 in round 1", sealed),
        (reader, sender, "from 0 to 1 in round 0", changed),
    ):
        with pytest.raises(ValueError, match="sealed shares that cannot be decrypted"):
            unseal(private, public_key(public), route, box)
