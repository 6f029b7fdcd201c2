"""Limits of connections: idle and slow connections are closed, and so are those over the maximum.

uvicorn limits the size of a request's head, and the time between a response and the next request.
It does not limit the time until a head is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from fedapt_runtime.serve.limits import Limits

Client = tuple[str, int]


class Connections:
    """The connections of one server, by the client's address and port.

    A connection is idle until the head of a request is complete, and again after the response. A
    connection that is idle for `limits.header_s` is closed.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: dict[Client, asyncio.Transport] = {}
        self._idle: dict[Client, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """Number of open connections."""
        return len(self._open)

    def add(self, client: Client, transport: asyncio.Transport) -> None:
        """Record a new connection; close it if there are too many."""
        if len(self._open) >= self._limits.max_connections:
            transport.abort()
            return
        self._open[client] = transport
        self.end_request(client)

    def remove(self, client: Client) -> None:
        """Record that a connection was closed."""
        self.begin_request(client)
        self._open.pop(client, None)

    def begin_request(self, client: Client) -> None:
        """Record that the head of a request is complete."""
        if (timer := self._idle.pop(client, None)) is not None:
            timer.cancel()

    def end_request(self, client: Client) -> None:
        """Record that the response is sent, and restart the idle timer."""
        self.begin_request(client)  # cancels an earlier timer
        if (transport := self._open.get(client)) is not None:
            loop = asyncio.get_running_loop()
            self._idle[client] = loop.call_later(self._limits.header_s, transport.abort)

    def protocol(self) -> Callable[..., asyncio.Protocol]:
        """The protocol class that uvicorn instantiates for each connection."""
        connections = self

        class WatchedProtocol(H11Protocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                connections.add(transport.get_extra_info("peername")[:2], transport)

            def connection_lost(self, exc: Exception | None) -> None:
                if self.client is not None:
                    connections.remove(self.client)
                super().connection_lost(exc)

        return WatchedProtocol
