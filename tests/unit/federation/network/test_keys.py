"""Signed requests and the folder of the keys that may sign them."""

from __future__ import annotations

import base64
import random
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedapt.core.errors import FederationError
from fedapt.federation.flower.certificates import draw_node_key
from fedapt.federation.flower.network import keys as keys_module
from fedapt.federation.flower.network.keys import (
    BODY,
    INSTANCE,
    KEY,
    SIGNATURE,
    TIME,
    ClockDiffers,
    KeyRegistry,
    Refused,
    fingerprint,
    public_text,
    read_private_key,
    read_public_key,
    sign,
    verify,
)


@pytest.fixture
def key(tmp_path: Path) -> ec.EllipticCurvePrivateKey:
    (tmp_path / "node.key").write_bytes(draw_node_key()[0])
    return read_private_key(tmp_path / "node.key")


def test_a_signature_is_of_one_request(key: ec.EllipticCurvePrivateKey) -> None:
    headers = sign(key, "/a", "01", b"body")
    assert public_text(verify("/a", headers)) == public_text(key.public_key())
    other = sign(ec.generate_private_key(ec.SECP384R1()), "/a", "01", b"body")
    for name, value in ((TIME, "1"), (INSTANCE, "02"), (BODY, "0"), (KEY, other[KEY])):
        with pytest.raises(Refused, match="no signature"):
            verify("/a", headers | {name: value})
    with pytest.raises(Refused):
        verify("/b", headers)


@pytest.mark.parametrize("name", [KEY, TIME, INSTANCE, BODY, SIGNATURE])
@pytest.mark.parametrize("value", [None, "", "\xff", "AAAA", "x" * 5000])
def test_headers_of_a_stranger(
    key: ec.EllipticCurvePrivateKey, name: str, value: str | None
) -> None:
    headers = sign(key, "/a", "01", b"")
    headers.pop(name)
    with pytest.raises(Refused, match="no signature"):
        verify("/a", headers if value is None else headers | {name: value})


def test_a_compressed_key_of_a_stranger(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """A form that the package does not read, and says so by another error than of the others."""
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    parts = (b"ecdsa-sha2-nistp384", b"nistp384", point)
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    text = base64.b64encode(blob).decode()
    with pytest.raises(Refused, match="no signature"):
        verify("/a", sign(key, "/a", "01", b"") | {KEY: text})
    (tmp_path / "node.pub").write_text(f"ecdsa-sha2-nistp384 {text}\n")
    with pytest.raises(FederationError, match="expected a node's public key"):
        read_public_key(tmp_path / "node.pub")


def test_damaged_headers_are_refused(key: ec.EllipticCurvePrivateKey) -> None:
    headers, rng = sign(key, "/a", "01", b""), random.Random(0)
    for _ in range(300):
        name = rng.choice((KEY, SIGNATURE))
        damaged = bytearray(base64.b64decode(headers[name]))
        damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
        del damaged[rng.randrange(len(damaged)) :: rng.choice((1, 1000))]
        with pytest.raises(Refused):
            verify("/a", headers | {name: base64.b64encode(damaged).decode()})


def test_another_time(key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(keys_module.time, "time", lambda: now[0])
    headers = sign(key, "/a", "01", b"")
    for there, differs in ((1299.0, ""), (1301.0, "-301 s"), (699.0, "301 s")):
        now[0] = there
        if not differs:
            verify("/a", headers)
            continue
        with pytest.raises(ClockDiffers, match=f"clock differs from the server's by {differs}"):
            verify("/a", headers)
    monkeypatch.setattr(keys_module.time, "time", lambda: float("nan"))
    with pytest.raises(ClockDiffers):
        verify("/a", sign(key, "/a", "01", b""))


def test_a_fingerprint_is_that_of_ssh(tmp_path: Path) -> None:
    path = tmp_path / "node.pub"
    path.write_bytes(draw_node_key()[1])
    named = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True)
    assert fingerprint(read_public_key(path)) == named.stdout.split()[1]


def test_the_folder_is_read_again_when_it_changes(tmp_path: Path) -> None:
    registry = KeyRegistry(tmp_path)
    assert registry.update() == ([], [])
    (tmp_path / "berlin.pub").write_bytes(draw_node_key()[1])
    (tmp_path / "none.pub").write_text("no key")
    new, errors = registry.update()
    assert new == ["berlin"]
    assert [error.where for error in errors] == [str(tmp_path / "none.pub")]
    assert registry.update() == ([], [])
    (tmp_path / "bern.pub").write_bytes(draw_node_key()[1])
    assert registry.update() == (["bern"], [])  # what is wrong is told once
    assert sorted(registry.names.values()) == ["berlin", "bern"]
    (tmp_path / "berlin.pub").unlink()
    assert registry.update() == ([], [])
    assert list(registry.names.values()) == ["bern"]


def test_a_key_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    with pytest.raises(FederationError, match="found no key of an elliptic curve"):
        read_private_key(path)
    with pytest.raises(FederationError, match="found no key of an elliptic curve"):
        read_public_key(tmp_path / "key.pub")
