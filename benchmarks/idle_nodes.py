"""What a server costs while 64 nodes are connected and nobody trains, and while strangers flood it.

    python benchmarks/idle_nodes.py

The server is a process of its own, with TLS; the nodes are connections of this process that wait
for messages, as `fedapt federation node` does.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
from figures import publish
from photos import ROOT

from fedapt.core.errors import FederationError
from fedapt.federation.flower.network.connection import Connection, Unreachable
from fedapt.federation.flower.settings import read_node

sys.path.insert(0, str(ROOT / "tests"))

from support.federation import Deployment, deploy

NODES, SECONDS, STRANGERS, MB = 64, 60.0, 1000, 1 << 20


def read_cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def wait_for_messages(folder: Path) -> None:
    with suppress(Unreachable, FederationError), Connection(folder, read_node(folder)) as node:
        node.join()
        while True:
            node.take()


def flood(deployment: Deployment, pid: int) -> tuple[float, float]:
    """Megabytes more that the server has with strangers' connections, and after 1 GB of body."""
    host, _, port = deployment.address.rpartition(":")
    before = read_megabytes(pid)
    with ExitStack() as stack:
        for number in range(STRANGERS):
            stranger = stack.enter_context(socket.create_connection((host, int(port))))
            if number % 2:  # the others say nothing at all
                stranger.sendall(b"\x16\x03\x01\x02\x00")
        connected = read_megabytes(pid) - before
        content = (bytes(MB) for _ in range(1024))
        with suppress(httpx.TransportError), httpx.Client(verify=False) as client:
            client.post(f"https://{deployment.address}/fedapt/reply/0", content=content)
        return connected, read_megabytes(pid) - before


def main() -> None:
    names = [f"node{number}" for number in range(NODES)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "d"
        with deploy(place, names, ("a", "b"), Path(folder), None) as deployment:
            deployment.start_server()
            pid = deployment.processes["server"].pid
            for name in names:
                arguments = (place / "nodes" / name,)
                threading.Thread(target=wait_for_messages, args=arguments, daemon=True).start()
            deployment.wait_until(lambda: deployment.say("server").count(": connected") == NODES)
            before = read_cpu_seconds(pid)
            time.sleep(SECONDS)
            share = (read_cpu_seconds(pid) - before) / SECONDS
            strangers, body = flood(deployment, pid)
    report = {
        "nodes": NODES,
        "share_of_a_core": round(share, 4),
        "megabytes_of_1000_strangers": round(strangers, 1),
        "megabytes_after_a_body_of_1_gb": round(body, 1),
    }
    publish("idle_nodes", report)


if __name__ == "__main__":
    main()
