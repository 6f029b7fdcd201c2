"""The server's door: who is turned away is told, once; who is let in notices nothing."""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedapt.core.report import Reporter
from fedapt.federation.flower import refusals as told_module
from fedapt.federation.flower.certificates import draw_node_key, issue_certificates
from fedapt.federation.flower.door import watch_door
from fedapt.federation.flower.refusals import Refusals, fingerprint
from fedapt.federation.flower.superlink import read_public_key
from tests.support.federation import find_port

ACTIVATE = "/v1/fleet/activate-node"


class Told(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


class Served:
    """A TLS server behind the door, which answers with the status that the query asks for."""

    def __init__(self, folder: Path) -> None:
        self.told, self.port = Told(), find_port()
        files = issue_certificates(["127.0.0.1"])
        self.authority = files.authority.decode()
        (folder / "server.pem").write_bytes(files.certificate)
        (folder / "server.key").write_bytes(files.key)
        self.known: set[bytes] = set()
        refusals = Refusals(self.told, Path("nodes"), lambda key: key in self.known)
        self._server: list[uvicorn.Server] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                while True:
                    kind = (await receive())["type"]
                    await send({"type": f"{kind}.complete"})
                    if kind == "lifespan.shutdown":
                        return
            assert scope["scheme"] == "https"
            status = int(scope["query_string"] or 200)
            body = b"answer"
            length = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": length})
            await send({"type": "http.response.body", "body": body})

        def run(app: Any, **options: Any) -> None:
            # signals are the main thread's, and `uvicorn.run` cannot be stopped from outside
            config = uvicorn.Config(app, **options)
            self._server.append(uvicorn.Server(config))
            self._server[0].run()

        def serve() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(uvicorn, "run", run)
                with watch_door(refusals):
                    uvicorn.run(
                        app=app,
                        port=self.port,
                        ws="none",
                        log_config=None,
                        ssl_certfile=folder / "server.pem",
                        ssl_keyfile=folder / "server.key",
                    )

        self._thread = threading.Thread(target=serve)
        self._thread.start()
        wait_until(lambda: bool(self._server) and self._server[0].started)

    def stop(self) -> None:
        self._server[0].should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def trust(self, authority: str | None = None) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=authority or self.authority)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.01)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.stop()


def ask(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def request(served: Served, message: bytes) -> bytes:
    with (
        served.connect() as plain,
        served.trust().wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(message)
        answer = b""
        while b"answer" not in answer:
            answer += secure.recv(4096) or pytest.fail(f"no answer, but {answer!r}")
        return answer


def test_who_trusts_the_certificate_is_answered(served: Served) -> None:
    for _ in range(3):
        assert request(served, ask("/")).startswith(b"HTTP/1.1 200")
    assert served.told.lines == []


def test_what_comes_with_the_end_of_the_handshake_is_not_lost(served: Served) -> None:
    """A client may send its first message together with its last of the handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = served.trust().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with served.connect() as plain:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65536))
        sent = client.write(ask("/"))
        assert sent
        plain.sendall(outgoing.read())  # the handshake's last and the request at once
        answer = b""
        while b"answer" not in answer:
            incoming.write(plain.recv(65536) or pytest.fail("closed"))
            try:
                answer += client.read()
            except ssl.SSLWantReadError:
                continue
    assert answer.startswith(b"HTTP/1.1 200")


def test_who_does_not_trust_it_is_told_of_once(served: Served) -> None:
    other = issue_certificates(["127.0.0.1"]).authority.decode()
    for _ in range(3):
        with served.connect() as plain, pytest.raises(ssl.SSLCertVerificationError):
            served.trust(other).wrap_socket(plain, server_hostname="127.0.0.1")
    wait_until(lambda: served.told.lines != [])
    with served.connect() as plain, pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        served.trust().wrap_socket(plain, server_hostname="example.org")
    wait_until(lambda: len(served.told.lines) == 2)
    begin = "turned away: 127.0.0.1: a node that does not trust this server's certificate: "
    end = "; copy authority.pem to it, and see to the address in its node.toml"
    assert served.told.lines == [
        f"{begin}it knows another authority{end}",
        f"{begin}it reaches this server by an address that the certificate does not have{end}",
    ]
    assert request(served, ask("/")).startswith(b"HTTP/1.1 200")


def test_noise_is_not_told(served: Served) -> None:
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b""):
        with served.connect() as plain:
            plain.sendall(noise)
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(4096):
                pass
    assert request(served, ask("/")).startswith(b"HTTP/1.1 200")
    assert served.told.lines == []


def test_a_key_that_is_not_known_is_told_of_once(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "node.pub"
    path.write_bytes(draw_node_key()[1])
    key = read_public_key(path)
    header = f"flwr-public-key: {base64.b64encode(key).decode()}"
    for status, target in ((200, ACTIVATE), (401, ACTIVATE), (412, "/v1/fleet/pull-messages")):
        assert f" {status} ".encode() in request(served, ask(f"{target}?{status}", header))
    served.known.add(key)
    assert b" 412 " in request(served, ask(f"{ACTIVATE}?412", header))
    assert served.told.lines == []
    served.known.clear()
    for _ in range(3):
        assert b" 412 " in request(served, ask(f"{ACTIVATE}?412", header))
    named = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True)
    (line,) = served.told.lines
    assert line == (
        f"turned away: 127.0.0.1: a node whose key {named.stdout.split()[1]} is not in nodes; if"
        " it is one of yours, put its .pub file there (ssh-keygen -y -f node.key)"
    )
    # no key, and none that Flower would have let through
    for header in ("x: y", "flwr-public-key: bm9uZQ==", "flwr-public-key: \xff"):
        assert b" 412 " in request(served, ask(f"{ACTIVATE}?412", header))
    assert len(served.told.lines) == 1


def test_a_flood_is_told_of_in_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told, asked = [0.0], Told(), []
    monkeypatch.setattr(told_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(told_module, "_REMEMBERED", 30)
    refusals = Refusals(told, Path("nodes"), lambda key: bool(asked.append(key)))
    keys = [ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(50)]
    for key in keys:
        refusals.refuse_key("10.0.0.1", public_key_to_bytes(key))
    assert len(told.lines) == 21
    assert told.lines[-1] == "turned away: more than are told of within a minute"
    assert fingerprint(keys[19]) in told.lines[19]
    assert len(asked) == 20  # the others cost no look into the folder
    now[0] = 61.0
    for key in keys:
        refusals.refuse_key("10.0.0.1", public_key_to_bytes(key))
    assert len(told.lines) == 42
    assert fingerprint(keys[20]) in told.lines[21]  # the first twenty have been told
    assert len(refusals._told) == 30
    refusals.refuse_handshake("10.0.0.2", "TLSV1_ALERT_UNKNOWN_CA")
    assert len(told.lines) == 42
    now[0] = 122.0
    refusals.refuse_handshake("10.0.0.2", "TLSV1_ALERT_UNKNOWN_CA")
    assert "10.0.0.2" in told.lines[42]
    now[0] = 183.0
    for reason in ("TLSV1_ALERT_PROTOCOL_VERSION", "WRONG_VERSION_NUMBER", "UNKNOWN_CA", ""):
        refusals.refuse_handshake("10.0.0.3", reason)  # of clients that are no nodes
    assert len(told.lines) == 43
