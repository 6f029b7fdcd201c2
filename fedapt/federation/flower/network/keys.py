"""The nodes' keys: files, fingerprints, and signed requests.

A signature covers the path, the time, the process and a hash of the body. The server can therefore
refuse a request before it reads the body. Nobody can repeat a request with another body.

Source: ECDSA on NIST P-384 with SHA-384 (FIPS 186-5), by the package cryptography.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
    ssh_key_fingerprint,
)

from fedapt.core.errors import FederationError

# clocks of server and nodes may differ by this much
TIME_TOLERANCE_S = 300.0
KEY, TIME, INSTANCE, BODY, SIGNATURE = (
    f"x-fedapt-{name}" for name in ("key", "time", "instance", "body", "signature")
)
_MAX_KEY_CHARACTERS = 400
# the package's exceptions for an unreadable key; the last one is for a compressed point
_NO_KEY = (ValueError, UnsupportedAlgorithm, NotImplementedError)


class Refused(Exception):
    """A request without a valid signature. The text may be sent to the holder of the key."""


class ClockDiffers(Refused):
    """A valid signature whose time is too far from the server's."""


def sign(key: ec.EllipticCurvePrivateKey, path: str, instance: str, body: bytes) -> dict[str, str]:
    """The headers of a signed request.

    Args:
        instance: number of the node's process, hexadecimal.
    """
    headers = {
        KEY: public_text(key.public_key()),
        TIME: f"{time.time():.3f}",
        INSTANCE: instance,
        BODY: hashlib.sha256(body).hexdigest(),
    }
    signature = key.sign(_to_sign(path, headers), ec.ECDSA(SHA384()))
    return headers | {SIGNATURE: base64.b64encode(signature).decode()}


def verify(path: str, headers: Mapping[str, str]) -> ec.EllipticCurvePublicKey:
    """The key that has signed these headers, registered or not.

    Raises:
        Refused: no key has.
        ClockDiffers: a key has, but the clocks differ by more than `TIME_TOLERANCE_S`.
    """
    try:
        key = _read_public(headers[KEY])
        signature = base64.b64decode(headers[SIGNATURE], validate=True)
        key.verify(signature, _to_sign(path, headers), ec.ECDSA(SHA384()))
        differs = float(headers[TIME]) - time.time()
    except (KeyError, InvalidSignature, binascii.Error, *_NO_KEY) as error:
        raise Refused("no signature") from error
    if not abs(differs) <= TIME_TOLERANCE_S:
        raise ClockDiffers(f"the node's clock differs from the server's by {differs:.0f} s")
    return key


def public_text(key: ec.EllipticCurvePublicKey) -> str:
    """A public key in the form of a header: OpenSSH's base64, without type and comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1].decode()


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Fingerprint of a public key, as `ssh-keygen -l` prints it."""
    return "SHA256:" + base64.b64encode(ssh_key_fingerprint(key, SHA256())).decode().rstrip("=")


class KeyRegistry:
    """The public keys in a folder, NAME.pub, read again when the folder changes.

    Args:
        folder: folder of the public keys of nodes that may connect.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, str] = {}
        self._read: dict[Path, tuple[int, int]] = {}

    def update(self) -> tuple[list[str], list[FederationError]]:
        """Read new, changed and removed files; names of new keys, and errors."""
        files: dict[Path, tuple[int, int]] = {}
        for path in sorted(self.folder.glob("*.pub")):
            try:
                status = path.stat()
            except OSError:  # removed since the listing
                continue
            files[path] = (status.st_mtime_ns, status.st_size)
        if files == self._read:
            return [], []
        names: dict[str, str] = {}
        errors: list[FederationError] = []
        for path in files:
            try:
                names.setdefault(public_text(read_public_key(path)), path.stem)
            except FederationError as error:
                if self._read.get(path) != files[path]:
                    errors.append(error)
        new = sorted(set(names.values()) - set(self.names.values()))
        self.names, self._read = names, files
        return new, errors


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """A node's public key.

    Raises:
        FederationError: the file is not a public key of an elliptic curve.
    """
    try:
        key = load_ssh_public_key(path.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("no key of an elliptic curve")
    except (OSError, *_NO_KEY) as error:
        raise FederationError(
            where=path,
            found=str(error) or type(error).__name__,
            expected="a node's public key, as `fedapt federation init` writes it",
            next_step="copy the node's own .pub file there",
        ) from error
    return key


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A node's private key.

    Raises:
        FederationError: the file is not a private key of an elliptic curve.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("no key of an elliptic curve")
    except (OSError, *_NO_KEY) as error:
        raise FederationError(
            where=path,
            found=str(error) or type(error).__name__,
            expected="a private key as `fedapt federation init` writes it",
            next_step="copy the node's own node.key here",
        ) from error
    return key


def _read_public(text: str) -> ec.EllipticCurvePublicKey:
    if len(text) > _MAX_KEY_CHARACTERS:
        raise ValueError("too long")
    kind = base64.b64decode(text, validate=True)[4:23]
    key = load_ssh_public_key(kind + b" " + text.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("no key of an elliptic curve")
    return key


def _to_sign(path: str, headers: Mapping[str, str]) -> bytes:
    return "\n".join(("fedapt", path, *(headers[n] for n in (TIME, INSTANCE, BODY)))).encode()
