"""The server's socket, with limits on time, memory and connections for unregistered clients.

A client is a stranger at first. It must complete the TLS handshake and send headers signed
with a registered key within seconds. Otherwise it gets 403, and its body is not read. The
limits count strangers' connections by address and in all. At a limit, a new connection replaces the
oldest one, so a flood does not lock other clients out. A node's connection may stay open. A node's
new connection replaces its oldest one at a limit, so no node can use all open files.

Source: TLS by asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import h11

from fedapt.federation.flower.network.http import (
    CHUNK_BYTES,
    Request,
    Response,
    read_body,
    read_event,
    send,
)
from fedapt.federation.flower.network.keys import BODY

# time to send to a slow node, and idle time of a node that trains
_SEND_S, _KEEP_S = 120.0, 3600.0
_MIN_BYTES_PER_S = 16_000
_PER_NODE = 16
# maximum of connections that wait, and of those accepted at once
_QUEUED, _AT_ONCE = 512, 8


@dataclass(frozen=True)
class Limits:
    """Limits for connections that have not shown a registered key (strangers).

    Attributes:
        handshake_s, headers_s: seconds for the TLS handshake, and for the headers after it.
        headers_bytes: maximum size of a request's headers.
        per_address, strangers: maximum number of such connections, by address and in all.
    """

    handshake_s: float = 10.0
    headers_s: float = 10.0
    headers_bytes: int = 8192
    per_address: int = 64
    strangers: int = 256

    @classmethod
    def of_this_process(cls) -> Limits:
        """Limits with which strangers use at most about a quarter of this process's open files."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            return cls()
        strangers = max(8, min(cls.strangers, files // 4))
        return cls(strangers=strangers, per_address=min(cls.per_address, strangers))


class Listener:
    """Accepts connections until it is closed.

    Args:
        identify: (address, path, headers) -> the node that has signed them, or a refusal.
        answer: returns the response to a node.
        fail_handshake: called with (address, OpenSSL's reason).
        max_body: bytes that the body of a request for this path may have.
        limits: limits for strangers.
        tls: None if TLS ends elsewhere.
    """

    def __init__(
        self,
        identify: Callable[[str, str, Mapping[str, str]], str | Response],
        answer: Callable[[Request], Awaitable[Response]],
        fail_handshake: Callable[[str, str], None],
        max_body: Callable[[str], int],
        limits: Limits,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._identify, self._answer, self._max_body = identify, answer, max_body
        self._fail_handshake, self._limits, self._tls = fail_handshake, limits, tls
        self._strangers: dict[asyncio.Transport, str] = {}  # the oldest first
        self._addresses: Counter[str] = Counter()
        self._nodes: dict[str, dict[asyncio.Transport, None]] = {}  # by node, the oldest first
        self._owners: dict[asyncio.Transport, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Start to accept connections.

        Raises:
            OSError: the server cannot listen at the address.
        """
        loop = asyncio.get_running_loop()
        family, _, _, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
        sock = socket.create_server(address[:2], family=family)
        # this many are accepted before the event loop handles them
        server = await loop.create_server(lambda: _Arrival(self), sock=sock, backlog=_AT_ONCE)
        sock.listen(_QUEUED)
        return server

    def begin(self, transport: asyncio.Transport, arrival: _Arrival) -> None:
        """A connection has been opened."""
        transport.pause_reading()  # the handshake reads the first bytes
        self._count_stranger(transport)
        task = asyncio.get_running_loop().create_task(self._serve(transport, arrival))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _count_stranger(self, transport: asyncio.Transport) -> None:
        address = _name(transport)
        if self._tls is not None and self._addresses[address] >= self._limits.per_address:
            self._drop_oldest(address)
        elif len(self._strangers) >= self._limits.strangers:
            self._drop_oldest(self._addresses.most_common(1)[0][0])
        self._strangers[transport] = address
        self._addresses[address] += 1

    def _drop_oldest(self, address: str) -> None:
        oldest = next(t for t, found in self._strangers.items() if found == address)
        self._forget(oldest)
        oldest.abort()

    def _keep(self, transport: asyncio.Transport, node: str) -> None:
        """Count the connection as this node's."""
        self._forget(transport)
        self._owners[transport] = node
        kept = self._nodes.setdefault(node, {})
        kept[transport] = None
        if len(kept) > _PER_NODE:
            oldest = next(iter(kept))
            self._forget(oldest)
            oldest.abort()

    def _forget(self, transport: asyncio.Transport) -> None:
        """Stop counting the connection."""
        if (node := self._owners.pop(transport, None)) is not None:
            del self._nodes[node][transport]
            if not self._nodes[node]:
                del self._nodes[node]
        if (address := self._strangers.pop(transport, None)) is not None:
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]

    async def _serve(self, transport: asyncio.Transport, arrival: _Arrival) -> None:
        secure: asyncio.Transport | None = None
        try:
            secure = await self._shake_hands(transport, arrival)
            if secure is not None and not secure.is_closing():
                reader, writer = arrival.open_streams(secure)
                try:
                    await self._exchange(transport, reader, writer)
                finally:
                    writer.close()
        except (OSError, TimeoutError, h11.RemoteProtocolError, h11.LocalProtocolError) as error:
            # disconnected, silent for too long, or no HTTP. The traceback's frames hold 256 KB of
            # buffers in a cycle, which the garbage collector may free much later.
            error.__traceback__ = None
        finally:
            self._forget(transport)
            if secure is not None:
                secure.abort()
            transport.abort()

    async def _shake_hands(
        self, transport: asyncio.Transport, arrival: _Arrival
    ) -> asyncio.Transport | None:
        if transport.is_closing():  # it was closed at the limit
            return None
        if self._tls is None:
            transport.resume_reading()
            return transport
        loop = asyncio.get_running_loop()
        try:
            return await loop.start_tls(
                transport,
                arrival,
                self._tls,
                server_side=True,
                ssl_handshake_timeout=self._limits.handshake_s,
                ssl_shutdown_timeout=self._limits.handshake_s,
            )
        except ssl.SSLError as error:
            error.__traceback__ = None  # as in `_serve`
            self._fail_handshake(_name(transport), error.reason or "")
            return None

    async def _exchange(
        self,
        transport: asyncio.Transport,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Requests and answers, until either side closes the connection."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.headers_bytes)
        seconds = self._limits.headers_s
        while True:
            async with asyncio.timeout(seconds):
                request = await read_event(http, reader)
            if not isinstance(request, h11.Request):
                return
            headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in request.headers}
            path = request.target.decode("latin-1")
            node = self._identify(_name(transport), path, headers)
            if isinstance(node, Response):
                await send(http, writer, node, close=True, seconds=_SEND_S)
                return
            self._keep(transport, node)
            seconds = _KEEP_S
            response = await self._handle(http, reader, node, path, headers)
            if response is None:
                return
            close = http.their_state is not h11.DONE
            await send(http, writer, response, close=close, seconds=_SEND_S)
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _handle(
        self,
        http: h11.Connection,
        reader: asyncio.StreamReader,
        node: str,
        path: str,
        headers: Mapping[str, str],
    ) -> Response | None:
        """The answer to a node; None if it has disconnected."""
        if "transfer-encoding" in headers:  # it would override the length (RFC 9112, 6.3)
            return Response(411, b"a body without a length")
        max_body, length = self._max_body(path), headers.get("content-length", "")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > max_body:
            return Response(413, f"a body of more than {max_body:,} bytes".encode())
        async with asyncio.timeout(_SEND_S + int(length) / _MIN_BYTES_PER_S):
            body = await read_body(http, reader)
        if hashlib.sha256(body).hexdigest() != headers[BODY]:
            return Response(400, b"another body than the signed one")
        work = asyncio.ensure_future(self._answer(Request(node, path, headers, body)))
        gone = asyncio.ensure_future(reader.read(1))  # a node sends nothing before its answer
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            for task in (work, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await asyncio.gather(work, gone, return_exceptions=True)


class _Arrival(asyncio.Protocol):
    """A connection until its handshake is over; then its bytes go to a stream."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._listener.begin(transport, self)

    def data_received(self, data: bytes) -> None:
        # bytes of a client that arrive before the task runs
        self._early += data

    def open_streams(
        self, transport: asyncio.Transport
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader = asyncio.StreamReader(limit=CHUNK_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._early:
            protocol.data_received(self._early)
        writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
        return reader, writer


def _name(transport: asyncio.Transport) -> str:
    """The address without its port, which changes."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else "an unknown address"
