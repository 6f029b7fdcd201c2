"""Clients of the service for benchmarks: keep-alive connections that check every answer.

Plain sockets in one event loop: a client library would take more time than the server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

MAX_IDLE_S = 2.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Found:
    """What clients saw.

    Attributes:
        seconds: of each answer.
        wrong: answers of another status, or with another label than expected.
        broken: connections that ended without an answer.
    """

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    broken: int = 0
    wall_s: float = 0.0

    @property
    def a_second(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.wall_s

    def quantiles_ms(self) -> dict[str, float]:
        """p50, p95 and p99 in milliseconds."""
        ordered = sorted(self.seconds)
        at = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        return {
            name: round(1e3 * ordered[int(share * (len(ordered) - 1))], 1)
            for name, share in at.items()
        }


@dataclass(frozen=True)
class Shot:
    """A request, whole, and the labels that may answer it."""

    request: bytes
    labels: frozenset[str]


def make_shot(image: bytes, labels: frozenset[str]) -> Shot:
    """`POST /v1/classify` with one image as a form."""
    boundary = uuid.uuid4().hex
    body = (
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        ).encode()
        + image
        + f"\r\n--{boundary}--\r\n".encode()
    )
    head = (
        "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer TOKEN\r\n"
        f"Content-Type: multipart/form-data; boundary={boundary}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    return Shot(head + body, labels)


async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shot: Shot) -> bool:
    """One request on an open connection; whether the answer is the expected one."""
    writer.write(shot.request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    body = await reader.readexactly(length)
    if not head.startswith(b"HTTP/1.1 200 "):
        return False
    return json.loads(body)["predictions"][0]["label"] in shot.labels


async def fire(
    port: int, shots: Sequence[Shot], clients: int, seconds: float, requests: int | None = None
) -> Found:
    """As many clients as asked for, each sending its next request when it has an answer.

    Args:
        seconds: how long they begin further requests.
        requests: how many they begin at most, together.
    """
    found, loop = Found(), asyncio.get_running_loop()
    numbers: Iterator[int] = itertools.count() if requests is None else iter(range(requests))
    end = loop.time() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            started = time.perf_counter()
            try:
                good = await send(reader, writer, shots[number % len(shots)])
            except (OSError, asyncio.IncompleteReadError):
                found.broken += 1
                return
            found.seconds.append(time.perf_counter() - started)
            found.wrong += not good
            if loop.time() >= end:
                break
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    found.wall_s = time.perf_counter() - began
    return found


async def fire_at_rate(port: int, shots: Sequence[Shot], rate: float, seconds: float) -> Found:
    """Requests at random times, so many a second on average (Poisson), whatever the answers do."""
    found, loop, draw = Found(), asyncio.get_running_loop(), random.Random(0)
    idle: list[tuple[float, Connection]] = []

    async def one(shot: Shot) -> None:
        started = time.perf_counter()
        # the server may be closing a connection that was idle for longer
        usable = idle and started - idle[-1][0] < MAX_IDLE_S
        pair = idle.pop()[1] if usable else await asyncio.open_connection("127.0.0.1", port)
        found.wrong += not await send(*pair, shot)
        found.seconds.append(time.perf_counter() - started)
        idle.append((time.perf_counter(), pair))

    began, at, tasks = time.perf_counter(), loop.time(), []
    end = at + seconds
    for number in itertools.count():
        at += draw.expovariate(rate)
        if at >= end:
            break
        await asyncio.sleep(max(0.0, at - loop.time()))
        tasks.append(asyncio.create_task(one(shots[number % len(shots)])))
    await asyncio.gather(*tasks)
    found.wall_s = time.perf_counter() - began
    for _, (_, writer) in idle:
        writer.close()
    return found
