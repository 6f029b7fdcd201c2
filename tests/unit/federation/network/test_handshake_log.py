"""Who is turned away is told to the operator: once each, a few of a flood."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedapt.core.report import Reporter
from fedapt.federation.flower.certificates import draw_node_key
from fedapt.federation.flower.network import handshake_log as log_module
from fedapt.federation.flower.network.handshake_log import HandshakeLog
from fedapt.federation.flower.network.keys import SIGNATURE, fingerprint, read_private_key, sign


class Told(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_a_key_that_is_not_known_is_told_of_once(tmp_path: Path) -> None:
    private, public = draw_node_key()
    (tmp_path / "node.key").write_bytes(private)
    (tmp_path / "node.pub").write_bytes(public)
    told = Told()
    log = HandshakeLog(told, Path("nodes"))
    headers = sign(read_private_key(tmp_path / "node.key"), "/fedapt/join", "01", b"")
    for wrong in ({}, headers | {SIGNATURE: "AAAA"}):  # nobody has shown to have the key
        log.refuse_key("127.0.0.1", "/fedapt/join", wrong)
    assert told.lines == []
    for _ in range(3):
        log.refuse_key("127.0.0.1", "/fedapt/join", headers)
    command = ["ssh-keygen", "-lf", tmp_path / "node.pub"]
    named = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = told.lines
    assert line == (
        f"turned away: 127.0.0.1: a node whose key {named.stdout.split()[1]} is not in nodes; if"
        " it is one of yours, put its .pub file there (ssh-keygen -y -f node.key)"
    )


def test_a_certificate_that_is_not_trusted() -> None:
    told = Told()
    log = HandshakeLog(told, Path("nodes"))
    for _ in range(3):
        log.refuse_handshake("10.0.0.1", "TLSV1_ALERT_UNKNOWN_CA")
        log.refuse_handshake("10.0.0.1", "SSLV3_ALERT_BAD_CERTIFICATE")
    for reason in ("TLSV1_ALERT_PROTOCOL_VERSION", "WRONG_VERSION_NUMBER", "UNKNOWN_CA", ""):
        log.refuse_handshake("10.0.0.3", reason)  # of clients that are no nodes
    begin = "turned away: 10.0.0.1: a node that does not trust this server's certificate: "
    end = "; copy authority.pem to it, and check the address in its node.toml"
    assert told.lines == [
        f"{begin}it knows another authority{end}",
        f"{begin}it uses an address of this server that the certificate does not have{end}",
    ]


def test_a_flood_is_told_of_in_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told, checked = [0.0], Told(), []
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(log_module, "_REMEMBERED", 30)
    verify = log_module.verify
    monkeypatch.setattr(log_module, "verify", lambda *a: checked.append(a) or verify(*a))
    log = HandshakeLog(told, Path("nodes"))
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(50)]
    for key in keys:
        log.refuse_key("10.0.0.1", "/", sign(key, "/", "01", b""))
    assert len(told.lines) == 21
    assert told.lines[-1] == "turned away: more refusals than the maximum of one minute"
    assert fingerprint(keys[19].public_key()) in told.lines[19]
    assert len(checked) == 20  # the others cost no signature
    now[0] = 61.0
    for key in keys:
        log.refuse_key("10.0.0.1", "/", sign(key, "/", "01", b""))
    assert len(told.lines) == 42
    assert fingerprint(keys[20].public_key()) in told.lines[21]  # the first twenty have been told
    assert len(log._told) == 30
