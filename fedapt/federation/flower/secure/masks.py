"""Masks: equal numbers at both ends of a pair, and random noise to all others.

X25519 agrees on a secret. HKDF-SHA256 derives a key for one purpose and round. AES-256 in counter
mode expands the key to a mask modulo 2^64. (Flower's own masks come from a generator with a seed of
32 bits, which can be found by search.)

Source: RFC 7748, RFC 5869, NIST SP 800-38A, by the package `cryptography`.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

# fixed-point numbers modulo 2^64
Words = NDArray[np.uint64]

KEY_BYTES = 32


def draw_key() -> bytes:
    """A private key, from the operating system's randomness."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    """The public half of a private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, purpose: str) -> bytes:
    """The key that the holders of two private keys share for one purpose.

    Raises:
        ValueError: a public key with which everybody knows the secret.
    """
    secret = X25519PrivateKey.from_private_bytes(private).exchange(
        X25519PublicKey.from_public_bytes(public)
    )
    return derive(secret, purpose)


def is_public_key(key: bytes) -> bool:
    """Whether an agreement with this key gives a secret."""
    try:
        agree(draw_key(), key, "trial")
    except ValueError:
        return False
    return True


def derive(secret: bytes, purpose: str) -> bytes:
    """A key for one purpose only."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"fedapt {purpose}".encode()).derive(secret)


def expand(key: bytes, n_words: int) -> Words:
    """A mask, uint64 [n_words]; each key is used for one mask only."""
    # the key is used once, so the counter may start at 0
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(8 * n_words)), "<u8").astype(np.uint64, copy=False)


def own_mask(seed: bytes, client: int, round_number: int, n_words: int) -> Words:
    """A client's own mask; it hides the vector even if all pair masks are known."""
    return expand(derive(seed, f"own mask of {client} in round {round_number}"), n_words)


def pair_mask(
    private: bytes, client: int, public: bytes, other: int, binding: bytes, n_words: int
) -> Words:
    """The mask of `client` for a neighbour; the neighbour adds the negative of it.

    Args:
        private: the private mask key of `client`.
        public: the public mask key of `other`.
        binding: hash of the values on which both must agree, or the two masks do not cancel.

    Raises:
        ValueError: the public key would make the mask known to everybody.
    """
    low, high = sorted((client, other))
    key = agree(private, public, f"mask of {low} and {high} bound to {binding.hex()}")
    mask = expand(key, n_words)
    return mask if client == low else np.negative(mask)
