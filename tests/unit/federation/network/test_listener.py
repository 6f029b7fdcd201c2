"""What a stranger's connection may have: little time, little memory, and room for others."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from fedapt.federation.flower.certificates import issue_certificates
from fedapt.federation.flower.network.http import Request, Response
from fedapt.federation.flower.network.keys import BODY
from fedapt.federation.flower.network.listener import Limits, Listener

NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of b""


class Served:
    """A listener in a thread of its own; whoever says `node: NAME` is that node."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.failed: list[tuple[str, str]] = []
        self.answered: list[Request] = []
        certificates = issue_certificates(["127.0.0.1"])
        self.authority = certificates.authority.decode()
        (folder / "server.pem").write_bytes(certificates.certificate)
        (folder / "server.key").write_bytes(certificates.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.listener = Listener(
            self._identify,
            self._answer,
            lambda address, reason: self.failed.append((address, reason)),
            lambda path: 100_000 if path == "/big" else 0,
            limits,
            context,
        )
        ready, self._stop = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()

        async def run() -> None:
            server = await self.listener.listen("127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._stop.wait()
            server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)

        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(run()))
        self._thread.start()
        ready.wait()

    def _identify(self, address: str, path: str, headers: Mapping[str, str]) -> str | Response:
        return headers.get("node") or Response(403)

    async def _answer(self, request: Request) -> Response:
        self.answered.append(request)
        if request.path == "/wait":
            await asyncio.sleep(3600)
        return Response(200, request.node.encode() + request.body[:4])

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    def trust(self, authority: str | None = None) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=authority or self.authority)

    def secure(self) -> ssl.SSLSocket:
        return self.trust().wrap_socket(self.connect(), server_hostname="127.0.0.1")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started = []

    def start(**limits: float) -> Served:
        started.append(Served(tmp_path, Limits(**limits)))  # type: ignore[arg-type]
        return started[0]

    yield start
    for served in started:
        served.stop()


def ask(path: str, node: str = "", body: bytes = b"", digest: str = NOTHING) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"content-length: {len(body)}"]
    lines += [f"node: {node}", f"{BODY}: {digest}"] if node else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes, in whatever way."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except (ConnectionError, ssl.SSLError):
        pass
    return found


def test_a_node_is_answered_again_and_again(serve: Callable[..., Served]) -> None:
    served = serve()
    with served.secure() as secure:
        for _ in range(3):
            secure.sendall(ask("/a", "berlin"))
            assert secure.recv(4096).endswith(b"\r\n\r\nberlin")


def test_a_stranger_is_refused_before_its_body(serve: Callable[..., Served]) -> None:
    served = serve()
    with served.secure() as secure:
        secure.sendall(b"POST /big HTTP/1.1\r\nHost: x\r\ncontent-length: 1000000000\r\n\r\n")
        answer = read_all(secure)  # although nothing of the body has been sent
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"connection: close" in answer.lower()
    assert served.answered == []


def test_a_node_gives_the_length_of_its_body(serve: Callable[..., Served]) -> None:
    # chunks have no length: beside content-length they would go on for ever
    chunked = b"\r\n".join(
        [
            b"POST /big HTTP/1.1",
            b"Host: x",
            b"node: berlin",
            f"{BODY}: {NOTHING}".encode(),
            b"content-length: 3",
            b"transfer-encoding: chunked",
            b"",
            b"186a1",
        ]
    )
    served = serve()
    with served.secure() as secure:
        # in one record with the header: the server hangs up before more could follow
        secure.sendall(chunked + b"\r\n" + b"x" * 100)
        assert read_all(secure).startswith(b"HTTP/1.1 411")
    assert served.answered == []


def test_a_body_is_as_long_as_a_reply_may_be(serve: Callable[..., Served]) -> None:
    served = serve()
    for path, length, status in (
        ("/big", "100001", b"HTTP/1.1 413"),
        ("/a", "1", b"HTTP/1.1 413"),
        ("/big", "9" * 5000, b""),  # no number that HTTP has
    ):
        with served.secure() as secure:
            text = f"POST {path} HTTP/1.1\r\nHost: x\r\nnode: a\r\n{BODY}: 0\r\n"
            secure.sendall(f"{text}content-length: {length}\r\n\r\n".encode())
            assert read_all(secure)[:12] == status
    with served.secure() as secure:  # no length at all
        text = f"POST /big HTTP/1.1\r\nHost: x\r\nnode: a\r\n{BODY}: 0\r\n"
        secure.sendall(f"{text}transfer-encoding: chunked\r\n\r\n".encode())
        assert read_all(secure).startswith(b"HTTP/1.1 411")
    assert served.answered == []


def test_another_body_than_the_signed_one(serve: Callable[..., Served]) -> None:
    served = serve()
    with served.secure() as secure:
        secure.sendall(ask("/big", "a", b"body", NOTHING))
        assert b"another body than the signed one" in secure.recv(4096)
    assert served.answered == []


def test_silence_is_cut_off(serve: Callable[..., Served]) -> None:
    served = serve(handshake_s=0.2, headers_s=0.2)
    with served.connect() as plain:
        assert read_all(plain) == b""  # no handshake
    with served.connect() as plain:
        plain.sendall(b"\x16\x03\x01\x02\x00")
        assert read_all(plain) == b""  # half of one
    with served.secure() as secure:
        assert read_all(secure) == b""  # no headers
    with served.secure() as secure:
        secure.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n")
        assert read_all(secure) == b""  # half of them
    with served.secure() as secure:
        secure.sendall(ask("/a", "berlin"))
        assert secure.recv(4096).endswith(b"berlin")


def test_endless_headers_are_cut_off(serve: Callable[..., Served]) -> None:
    served = serve(headers_bytes=1000)
    with served.secure() as secure:
        with suppress(OSError):  # cut off while it sends
            secure.sendall(b"POST / HTTP/1.1\r\nHost: " + b"x" * 1_000_000)
        assert read_all(secure) == b""


def test_the_oldest_stranger_makes_room(serve: Callable[..., Served]) -> None:
    served = serve(per_address=3)
    with served.secure() as node:
        node.sendall(ask("/a", "berlin"))
        assert node.recv(4096).endswith(b"berlin")
        strangers = [served.connect() for _ in range(5)]
        for stranger in strangers[:2]:
            assert read_all(stranger) == b""  # dropped, long before its time is over
        with served.secure() as late:
            late.sendall(ask("/a", "bern"))
            assert late.recv(4096).endswith(b"bern")
        node.sendall(ask("/a", "berlin"))  # who has shown a key is no stranger
        assert node.recv(4096).endswith(b"berlin")
        for stranger in strangers:
            stranger.close()


def test_strangers_are_counted_in_all(serve: Callable[..., Served]) -> None:
    served = serve(strangers=2)
    strangers = [served.connect() for _ in range(3)]
    assert read_all(strangers[0]) == b""
    for stranger in strangers:
        stranger.close()


def test_a_nodes_oldest_connection_makes_room(serve: Callable[..., Served]) -> None:
    """It takes no more files than sixteen, and none from another node."""
    served = serve()
    with ExitStack() as stack:
        other = stack.enter_context(served.secure())
        other.sendall(ask("/a", "bern"))
        assert other.recv(4096).endswith(b"bern")
        connections = [stack.enter_context(served.secure()) for _ in range(18)]
        for connection in connections:
            connection.sendall(ask("/a", "berlin"))
            assert connection.recv(4096).endswith(b"berlin")
        for connection in connections[:2]:
            assert read_all(connection) == b""
        for connection, node in ((connections[2], "berlin"), (other, "bern")):
            connection.sendall(ask("/a", node))
            assert connection.recv(4096).endswith(node.encode())


def test_a_node_that_goes_is_waited_for_no_longer(serve: Callable[..., Served]) -> None:
    served = serve()
    with served.secure() as secure:
        secure.sendall(ask("/wait", "a"))
        while not served.answered:
            pass
    # its task ends, or the fixture would find it: nobody can answer it any more
    while any("_serve" in repr(task) for task in asyncio.all_tasks(served._loop)):
        pass


def test_what_comes_with_the_end_of_the_handshake_is_not_lost(
    serve: Callable[..., Served],
) -> None:
    """A client may send its first message together with its last of the handshake."""
    served = serve()
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
        client.write(ask("/a", "berlin"))
        plain.sendall(outgoing.read())  # the handshake's last and the request at once
        answer = b""
        while b"berlin" not in answer:
            incoming.write(plain.recv(65536) or pytest.fail("closed"))
            try:
                answer += client.read()
            except ssl.SSLWantReadError:
                continue
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_failed_handshake_is_told(serve: Callable[..., Served]) -> None:
    served = serve()
    other = issue_certificates(["127.0.0.1"]).authority.decode()
    with served.connect() as plain, pytest.raises(ssl.SSLCertVerificationError):
        served.trust(other).wrap_socket(plain, server_hostname="127.0.0.1")
    while not served.failed:
        pass
    assert served.failed == [("127.0.0.1", "TLSV1_ALERT_UNKNOWN_CA")]


def test_noise_is_no_request(serve: Callable[..., Served]) -> None:
    served = serve()
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b""):
        with served.connect() as plain:
            plain.sendall(noise)
            plain.shutdown(socket.SHUT_WR)
            read_all(plain)
    with served.secure() as secure:
        secure.sendall(b"\x00\x01\x02\r\n\r\n")
        assert read_all(secure) == b""
    with served.secure() as secure:
        secure.sendall(ask("/a", "berlin"))
        assert secure.recv(4096).endswith(b"berlin")


def test_limits_leave_files_to_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedapt.federation.flower.network import listener

    for files, strangers in ((300, 75), (1 << 20, 256), (16, 8)):
        monkeypatch.setattr(listener.resource, "getrlimit", lambda kind, files=files: (files, 0))
        limits = Limits.of_this_process()
        assert (limits.strangers, limits.per_address) == (strangers, min(64, strangers))
