"""The log of refused connections: each refusal once, with a maximum of lines a minute."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from fedapt.core.report import Reporter
from fedapt.federation.flower.network.keys import KEY, Refused, fingerprint, verify

_MINUTE_S, _LINES_A_MINUTE = 60.0, 20
_REMEMBERED = 1000
# a node's alerts about a certificate; other alerts come from other clients
_ALERTS = {
    "UNKNOWN_CA": "it knows another authority",
    "BAD_CERTIFICATE": "it uses an address of this server that the certificate does not have",
    "CERTIFICATE_EXPIRED": "the certificate has expired by the node's clock",
    "CERTIFICATE_UNKNOWN": "the node gives no reason",
}


class HandshakeLog:
    """Reports each refusal once.

    Args:
        reporter: receives the messages.
        folder: folder of the public keys that may connect.
    """

    def __init__(self, reporter: Reporter, folder: Path) -> None:
        self._reporter, self._folder = reporter, folder
        self._told: dict[tuple[str, str], None] = {}  # in the order of the reports
        self._minute, self._lines = time.monotonic(), 0

    def refuse_key(self, address: str, path: str, headers: Mapping[str, str]) -> None:
        """Report a request with an unregistered key if its signature is valid."""
        text = headers.get(KEY, "")
        if not text or not self._is_new(address, text):
            return
        try:
            name = fingerprint(verify(path, headers))
        except Refused:
            return
        self._tell(
            address,
            text,
            f"a node whose key {name} is not in {self._folder}; if it is one of yours, put its"
            " .pub file there (ssh-keygen -y -f node.key)",
        )

    def refuse_handshake(self, address: str, reason: str) -> None:
        """Report a client that has aborted the handshake.

        Args:
            reason: OpenSSL's name of the error, such as TLSV1_ALERT_UNKNOWN_CA.
        """
        _, _, alert = reason.partition("_ALERT_")
        if alert in _ALERTS and self._is_new(address, alert):
            self._tell(
                address,
                alert,
                f"a node that does not trust this server's certificate: {_ALERTS[alert]}; copy"
                " authority.pem to it, and check the address in its node.toml",
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
            self._reporter.message("turned away: more refusals than the maximum of one minute")
