"""Request bodies, read within limits of size and time, until the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from fedapt_runtime.errors import RequestError
from fedapt_runtime.serve.limits import Limits, Quota

_Answer = TypeVar("_Answer")


@asynccontextmanager
async def open_body(
    request: Request, limits: Limits, bodies: Quota
) -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
    """The chunks of a body; its bytes count as held while the block runs.

    Args:
        bodies: bytes of all bodies that the server holds.

    Raises:
        RequestError: 413 if the body is over the limit, 415 if it has a content coding, 408 if it
            is too slow, 503 if all bodies together are over their limit.
        ClientDisconnect: the client disconnected.
    """
    _check_headers(request, limits)
    held = 0

    async def read() -> AsyncGenerator[bytes, None]:
        nonlocal held
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limits.body_s
        stream = request.stream()
        while True:
            try:
                # a timeout around the whole generator would also count the consumer's time
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(stream, None)
            except TimeoutError as error:
                raise _too_slow(limits) from error
            if chunk is None:
                return
            if held + len(chunk) > limits.max_body:
                raise _too_large("more bytes", limits)
            bodies.take(len(chunk))
            held += len(chunk)
            yield chunk

    chunks = read()
    try:
        yield chunks
    finally:
        await chunks.aclose()
        bodies.give_back(held)


async def join(chunks: AsyncGenerator[bytes, None]) -> bytes:
    """The complete body."""
    return b"".join([chunk async for chunk in chunks])


def _check_headers(request: Request, limits: Limits) -> None:
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise RequestError(
            415,
            where="Content-Encoding",
            found=repr(coding),
            expected="an uncompressed body",
            next_step="send the body without compression",
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.max_body:
        raise _too_large(f"{length[:20]} bytes", limits)


def _too_large(found: str, limits: Limits) -> RequestError:
    return RequestError(
        413,
        where="the body",
        found=found,
        expected=f"{limits.max_body:,} bytes at most",
        next_step="send smaller images, or split them into several requests",
    )


def _too_slow(limits: Limits) -> RequestError:
    return RequestError(
        408,
        where="the body",
        found=f"an incomplete body after {limits.body_s:g} s",
        expected="the complete body",
        next_step="send the body faster, or split it into several requests",
    )


async def answer_in_time(request: Request, work: Awaitable[_Answer], limits: Limits) -> _Answer:
    """Wait for the work on a complete request; cancel it if the client disconnects.

    Raises:
        ClientDisconnect: the client disconnected.
        RequestError: 503, the work took longer than `limits.answer_s`.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait(
            {working, leaving}, timeout=limits.answer_s, return_when=asyncio.FIRST_COMPLETED
        )
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientDisconnect
        raise RequestError(
            503,
            retry_after_s=1,
            where="the server",
            found=f"no answer after {limits.answer_s:g} s",
            expected="an answer within that time",
            next_step="send the request again later",
        )
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})  # they release their quota before the response


async def _wait_until_gone(request: Request) -> None:
    message: dict[str, Any] = {}
    while message.get("type") != "http.disconnect":
        message = dict(await request.receive())
