"""Shares of a secret: any `threshold` of them restore it, fewer reveal nothing.

Shamir's scheme over GF(2^128) is pycryptodome's, through Flower. A share for a neighbour is sealed
with AES-256-GCM, so the server that forwards it cannot read it.

Source: flwr.common.secure_aggregation.crypto.shamir; NIST SP 800-38D.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedapt.federation.flower.internals import combine_shares, create_shares
from fedapt.federation.flower.secure.masks import KEY_BYTES, agree

_NONCE_BYTES = 12
# an index, and the blocks of a padded secret
SHARE_BYTES = 4 + KEY_BYTES + 16
SEALED_BYTES = _NONCE_BYTES + 2 * SHARE_BYTES + 16


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """`count` shares of a secret of 32 bytes."""
    return create_shares(secret, threshold, count)


def combine(shares: Sequence[bytes]) -> bytes:
    """Restore the secret of 32 bytes.

    Args:
        shares: the threshold's number of shares.

    Raises:
        ValueError: these are not shares of one secret.
    """
    if len({share[:4] for share in shares}) < len(shares):
        raise ValueError("a share twice")
    secret = combine_shares(list(shares))
    if len(secret) != KEY_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes")
    return secret


def seal(private: bytes, public: bytes, route: str, plain: bytes) -> bytes:
    """Encrypt bytes so that only the holder of the other private key can read them.

    Args:
        route: sender, receiver and round; another route cannot open the bytes.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    key = agree(private, public, f"shares {route}")
    return nonce + AESGCM(key).encrypt(nonce, plain, route.encode())


def unseal(private: bytes, public: bytes, route: str, sealed: bytes) -> bytes:
    """Decrypt a sealed share.

    Raises:
        ValueError: sender, receiver or round differ, or the bytes were changed.
    """
    key = agree(private, public, f"shares {route}")
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], route.encode())
    except InvalidTag as error:
        raise ValueError("sealed shares that cannot be decrypted") from error
