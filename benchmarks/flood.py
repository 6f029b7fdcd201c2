"""A thousand idle and half-open connections of strangers for 60 s, while a node joins and trains.

    python benchmarks/flood.py

A server that may open 300 files, three nodes, a tiny CLIP. A third of the strangers says nothing, a
third begins a TLS handshake, a third ends the handshake and sends half a header. Each one
connects again as soon as the server hangs up. One node is killed and started again in the middle.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from figures import publish
from idle_nodes import read_megabytes
from photos import ROOT

from fedapt.core.records import read_records

sys.path.insert(0, str(ROOT / "tests"))

from support.federation import FEW_FILES, deploy
from support.tiny import CLASSES, write_tiny_clip, write_tiny_images

NODES, STRANGERS, SECONDS = ("cartoon", "photo", "sketch"), 1000, 60.0
SETTINGS = ("train.rounds=20", "train.batch_size=8", "prompt.context_length=4")
HALF_A_HANDSHAKE, HALF_A_HEADER = b"\x16\x03\x01\x02\x00", b"POST /fedapt/take HTTP/1.1\r\nhost: "


@dataclass
class Flood:
    """Connections that strangers keep open, each opened again when the server ends it."""

    host: str
    port: int
    opened: int = 0
    open: int = 0
    largest: int = 0

    def start(self) -> threading.Thread:
        """Begin in a thread, which ends by itself."""
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        thread.start()
        return thread

    async def _run(self) -> None:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        tasks = (self._keep_one(number % 3, trusting) for number in range(STRANGERS))
        with suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(*tasks)

    async def _keep_one(self, kind: int, trusting: ssl.SSLContext) -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    self.host, self.port, ssl=trusting if kind == 2 else None
                )
                self.opened += 1
                self.open += 1
                self.largest = max(self.largest, self.open)
                try:
                    writer.write((b"", HALF_A_HANDSHAKE, HALF_A_HEADER)[kind])
                    await reader.read()
                finally:
                    self.open -= 1
                    writer.close()
            await asyncio.sleep(0.1)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        images, clip = write_tiny_images(work / "images", 6, NODES), work / "clip"
        write_tiny_clip(clip)
        classes = [text.replace("_", " ") for text in CLASSES]
        with deploy(work / "d", NODES, classes, images, clip, *SETTINGS) as deployment:
            deployment.start_server(FEW_FILES)
            pid = deployment.processes["server"].pid
            for node in NODES:
                deployment.start_node(node)
            deployment.train()
            quiet = read_records(deployment.run / "records.jsonl")
            before = read_megabytes(pid)

            host, _, port = deployment.address.rpartition(":")
            flood = Flood(host, int(port))
            started, running = time.monotonic(), flood.start()
            deployment.wait_until(lambda: time.monotonic() - started > SECONDS / 3)
            deployment.kill("sketch")
            joined = deployment.say("server").count("sketch: connected")
            began = time.monotonic()
            deployment.start_node("sketch")
            deployment.wait_until(
                lambda: deployment.say("server").count("sketch: connected") > joined
            )
            seconds_to_join = time.monotonic() - began
            deployment.configure("server/server.toml", out="flooded")
            deployment.train()
            flooded = read_records(deployment.run / "records.jsonl")
            seconds_after = time.monotonic() - started
            running.join()
            megabytes = read_megabytes(pid) - before
    if not flood.opened:
        sys.exit("no stranger reached the server: this measured nothing")
    report = {
        "strangers": STRANGERS,
        "connections_opened": flood.opened,
        "largest_number_open": flood.largest,
        "seconds_until_the_node_has_joined": round(seconds_to_join, 1),
        "trained_after_seconds": round(seconds_after, 1),
        "seconds_a_round": {
            name: round(statistics.median(r["seconds"] for r in records[1:]), 3)
            for name, records in (("quiet", quiet), ("flooded", flooded))
        },
        "replies": [record["replies"] for record in flooded],
        "megabytes_more": round(megabytes, 1),
    }
    publish("flood", report)


if __name__ == "__main__":
    main()
