"""Who is turned away at the server's door, told to its operator: once each, a few of a flood."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import ssh_key_fingerprint
from flwr.supercore.primitives.asymmetric import bytes_to_public_key

from fedapt.core.report import Reporter

_MINUTE_S, _LINES_A_MINUTE = 60.0, 20
_REMEMBERED = 1000
# what a client says of a certificate; other alerts are of clients that are no nodes
_ALERTS = {
    "UNKNOWN_CA": "it knows another authority",
    "BAD_CERTIFICATE": "it reaches this server by an address that the certificate does not have",
    "CERTIFICATE_EXPIRED": "by its clock the certificate has expired",
    "CERTIFICATE_UNKNOWN": "it does not say why",
}


class Refusals:
    """Tells of each refusal once.

    Args:
        reporter: told of them.
        folder: of the public keys that may connect.
        is_known: whether a public key, as Flower keeps it, is one of them.
    """

    def __init__(self, reporter: Reporter, folder: Path, is_known: Callable[[bytes], bool]) -> None:
        self._reporter, self._folder, self._is_known = reporter, folder, is_known
        self._told: dict[tuple[str, str], None] = {}  # in the order of the telling
        self._minute, self._lines = time.monotonic(), 0

    def refuse_key(self, address: str, key: bytes) -> None:
        """A node has proved that it has this key, and was not let in."""
        name = fingerprint(bytes_to_public_key(key))
        # one that is known is refused while another process connects with it, or before it is read
        if self._is_new(address, name) and not self._is_known(key):
            self._tell(
                address,
                name,
                f"a node whose key {name} is not in {self._folder}; if it is one of yours, put its"
                " .pub file there (ssh-keygen -y -f node.key)",
            )

    def refuse_handshake(self, address: str, reason: str) -> None:
        """A client has broken off the handshake.

        Args:
            reason: as OpenSSL names it, such as TLSV1_ALERT_UNKNOWN_CA.
        """
        _, _, alert = reason.partition("_ALERT_")
        if alert in _ALERTS and self._is_new(address, alert):
            self._tell(
                address,
                alert,
                f"a node that does not trust this server's certificate: {_ALERTS[alert]}; copy"
                " authority.pem to it, and see to the address in its node.toml",
            )

    def _is_new(self, address: str, what: str) -> bool:
        return (address, what) not in self._told and not self._is_flooded()

    def _is_flooded(self) -> bool:
        now = time.monotonic()
        if now - self._minute >= _MINUTE_S:
            self._minute, self._lines = now, 0
        return self._lines >= _LINES_A_MINUTE

    def _tell(self, address: str, what: str, text: str) -> None:
        self._lines += 1
        self._told[address, what] = None
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        self._reporter.message(f"turned away: {address}: {text}")
        if self._is_flooded():
            self._reporter.message("turned away: more than are told of within a minute")


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as `ssh-keygen -l` names it."""
    return "SHA256:" + base64.b64encode(ssh_key_fingerprint(key, SHA256())).decode().rstrip("=")
