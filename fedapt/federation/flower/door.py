"""The server's door: it looks on while uvicorn takes connections for Flower's SuperLink.

Neither says who is not let in: Flower answers an unknown key with a number, and event loops drop a
handshake that fails without a word. All that is not public of either stands in this file; where it
has changed, the server runs as it would without.

Source: flwr.superlink.cli.flower_superlink, which ends in `uvicorn.run`; asyncio's `start_tls`.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedapt.federation.flower.refusals import Refusals

_ACTIVATE = "/v1/fleet/activate-node"
_REFUSED = 412  # for a key that is not known, once its owner has proved to have it


@contextmanager
def watch_door(refusals: Refusals) -> Iterator[None]:
    """Have the server that the block runs tell whom it turns away."""
    serve = uvicorn.run

    def run(app: Any, **options: Any) -> None:
        # uvloop reads from a connection before its handshake can be begun
        serve(_watch_answers(app, refusals), **options | {"loop": "asyncio"})

    uvicorn.run = run
    try:
        yield
    finally:
        uvicorn.run = serve


def _watch_answers(app: ASGIApp, refusals: Refusals) -> ASGIApp:
    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # in the event loop, before it listens
            _watch_handshakes(asyncio.get_running_loop(), refusals)
        if scope.get("path") != _ACTIVATE:
            await app(scope, receive, send)
            return

        async def look(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == _REFUSED:
                key = dict(scope["headers"]).get(FLEET_HTTP_PUBLIC_KEY_HEADER.encode(), b"")
                with suppress(ValueError):  # no key, which Flower would not have let come so far
                    refusals.refuse_key(_name(scope["client"]), base64.b64decode(key))
            await send(message)

        await app(scope, receive, look)

    return watched


def _watch_handshakes(loop: asyncio.AbstractEventLoop, refusals: Refusals) -> None:
    """Let what this loop serves with TLS come in by a `_Porch`."""
    if not isinstance(loop, asyncio.SelectorEventLoop):
        return
    create = loop.create_server

    async def create_server(
        build: Callable[[], asyncio.Protocol],
        *arguments: Any,
        ssl: ssl.SSLContext | None = None,
        **options: Any,
    ) -> asyncio.Server:
        if ssl is None:
            return await create(build, *arguments, **options)
        return await create(lambda: _Porch(build(), ssl, refusals), *arguments, **options)

    loop.create_server = create_server  # type: ignore[method-assign,assignment]


class _Porch(asyncio.Protocol):
    """A connection until its handshake is over; from then on it is its protocol's own."""

    def __init__(
        self, protocol: asyncio.Protocol, context: ssl.SSLContext, refusals: Refusals
    ) -> None:
        self._protocol, self._context, self._refusals = protocol, context, refusals
        self._early = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # what comes is for the handshake
        self._task = asyncio.ensure_future(self._shake_hands(transport))

    def data_received(self, data: bytes) -> None:
        # of a client that speaks before the task goes on
        self._early += data

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        address = _name(transport.get_extra_info("peername"))
        try:
            secure = await loop.start_tls(transport, self, self._context, server_side=True)
        except ssl.SSLError as error:
            self._refusals.refuse_handshake(address, error.reason or "")
            return
        except OSError:  # gone, or silent for too long
            return
        if secure is not None and not secure.is_closing():
            secure.set_protocol(self._protocol)
            self._protocol.connection_made(secure)
            if self._early:
                self._protocol.data_received(self._early)


def _name(client: Any) -> str:
    """The address without its port, which is another each time."""
    return str(client[0]) if client else "an unknown address"
