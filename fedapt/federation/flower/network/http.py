"""A connection's requests and responses. Source: HTTP/1.1 by h11."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import h11

CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """A request with a valid signature and its complete body."""

    node: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Response:
    """An answer; `headers` are those besides its length."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


async def read_event(http: h11.Connection, reader: asyncio.StreamReader) -> Any:
    """The next event of h11.

    Raises:
        h11.RemoteProtocolError: the bytes are not HTTP.
        OSError: the connection is broken.
    """
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(CHUNK_BYTES))
    return event


async def read_body(http: h11.Connection, reader: asyncio.StreamReader) -> bytes:
    """The body of a request whose headers have been read; see `read_event`."""
    parts = []
    while isinstance(event := await read_event(http, reader), h11.Data):
        parts.append(bytes(event.data))
    return b"".join(parts)


async def send(
    http: h11.Connection,
    writer: asyncio.StreamWriter,
    response: Response,
    *,
    close: bool,
    seconds: float,
) -> None:
    """Send a response.

    Args:
        close: end the connection after it.
        seconds: maximum time.

    Raises:
        TimeoutError, OSError: the client has not read it.
    """
    headers = [(n, v) for n, v in response.headers.items()]
    headers.append(("content-length", str(len(response.body))))
    if close:
        headers.append(("connection", "close"))
    events = (
        h11.Response(status_code=response.status, headers=headers),
        h11.Data(data=response.body),
        h11.EndOfMessage(),
    )
    async with asyncio.timeout(seconds):
        writer.write(b"".join(http.send(event) or b"" for event in events))
        await writer.drain()
        if close:  # abort would discard unsent bytes
            writer.close()
            await writer.wait_closed()
