"""Masks cancel to the bit, are the standard's, and differ in all that should make them differ."""

from __future__ import annotations

import hmac
import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedapt.federation.flower.secure.masks import (
    agree,
    derive,
    draw_key,
    expand,
    is_public_key,
    own_mask,
    pair_mask,
    public_key,
)

N = 37


def test_masks_of_a_pair_cancel() -> None:
    one, other = draw_key(), draw_key()
    up = pair_mask(one, 3, public_key(other), 8, b"2", N)
    down = pair_mask(other, 8, public_key(one), 3, b"2", N)
    assert up.dtype == np.uint64
    assert up.shape == (N,)
    assert not (up + down).any()
    assert len(set(up.tolist())) == N


@pytest.mark.parametrize("dropped", [(), (0,), (1, 4), (0, 2, 3)])
def test_masks_of_many_cancel_but_for_who_dropped_out(dropped: tuple[int, ...]) -> None:
    keys = {i: draw_key() for i in range(5)}
    rng = np.random.default_rng(0)
    words = {i: rng.integers(0, 1 << 63, N, np.uint64) * np.uint64(2) for i in keys}
    total = np.zeros(N, np.uint64)
    for i, j in itertools.permutations(keys, 2):
        if i not in dropped:
            total += pair_mask(keys[i], i, public_key(keys[j]), j, b"0", N)
    there = [i for i in keys if i not in dropped]
    total += np.sum([words[i] for i in there], axis=0, dtype=np.uint64)
    expected = np.sum([words[i] for i in there], axis=0, dtype=np.uint64)
    assert np.array_equal(total, expected) == (not dropped)
    for i in dropped:
        for j in there:
            total += pair_mask(keys[i], i, public_key(keys[j]), j, b"0", N)
    assert np.array_equal(total, expected)


def test_a_mask_is_of_its_pair_and_what_it_is_bound_to() -> None:
    a, b, c = draw_key(), draw_key(), draw_key()
    masks = [
        pair_mask(a, 0, public_key(b), 1, b"0", N),
        pair_mask(a, 0, public_key(b), 1, b"1", N),
        pair_mask(a, 0, public_key(b), 2, b"0", N),
        pair_mask(a, 0, public_key(c), 1, b"0", N),
        own_mask(a, 0, 0, N),
        own_mask(a, 0, 1, N),
        own_mask(a, 1, 0, N),
        own_mask(b, 0, 0, N),
    ]
    for one, other in itertools.combinations(masks, 2):
        assert not (one == other).any()


def test_the_stream_is_aes_256() -> None:
    # AES-256 of a block of zeros under a key of zeros (NIST's AESAVS, the known answer of 256 bits)
    block = bytes.fromhex("dc95c078a2408989ad48a21492842087")
    assert expand(bytes(32), 2).tobytes() == block
    # counter mode: block i is the cipher of the number i
    key = derive(b"x", "test")
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = b"".join(ecb.update(i.to_bytes(16, "big")) for i in range(5))
    assert expand(key, 10).tobytes() == blocks
    assert expand(key, 9).tobytes() == blocks[:72]


def test_the_agreement_is_x25519_and_hkdf() -> None:
    # RFC 7748, section 6.1: Bob's private key, Alice's public one, and their secret
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    secret = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert public_key(bob).hex().startswith("de9edb7d7b7dc1b4d35b61c2ece43537")
    # RFC 5869, with one block and no salt
    inner = hmac.digest(bytes(32), secret, "sha256")
    assert agree(bob, alice, "mask of 0 and 1") == hmac.digest(
        inner, b"fedapt mask of 0 and 1\x01", "sha256"
    )


def test_a_key_that_everybody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="shared key"):
        agree(draw_key(), bytes(32), "mask")
    assert is_public_key(public_key(draw_key()))
    for none in (bytes(32), b"\x01" + bytes(31), bytes(31), b""):
        assert not is_public_key(none)
