"""A real federation on loopback: server and nodes as processes, all ended afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from fedapt.federation.flower.operator import request_training

ENDS = ("finished", "failed")
FEDAPT = [sys.executable, "-m", "fedapt.cli"]
# as a machine whose administrator was thrifty
FEW_FILES = ["bash", "-c", 'ulimit -n 300 && exec "$@"', "bash", *FEDAPT]
# only a hang is as long as this, also on a machine that has much else to do
PATIENCE_S = 600.0


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Deployment:
    """A folder of `fedapt federation init`, and the processes that were started from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return str(tomllib.loads((self.folder / "server/server.toml").read_text())["address"])

    @property
    def run(self) -> Path:
        table = tomllib.loads((self.folder / "server/server.toml").read_text())
        return self.folder / "server" / table.get("out", "run")

    def start(self, name: str, *arguments: str, program: Sequence[str] = FEDAPT) -> None:
        """`fedapt federation ARGUMENTS` in a session of its own; what it says goes to NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*program, "federation", *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def start_server(self, program: Sequence[str] = FEDAPT) -> None:
        """Start the server, and wait until it listens."""
        before = self.say("server").count("listening at")
        self.start("server", "server", str(self.folder / "server"), program=program)
        self.wait_until(lambda: self.say("server").count("listening at") > before)

    def start_node(self, name: str) -> None:
        self.start(name, "node", str(self.folder / "nodes" / name))

    def start_training(self) -> None:
        self.start("train", "train", str(self.folder / "server"), "--json")

    def train(self) -> None:
        """To the end, without the command that shows it."""
        request_training(self.folder / "server")
        self.wait_until(lambda: any(line["event"] in ENDS for line in self.events()))
        assert self.events()[-1]["event"] == "finished", self.events()[-1]

    def configure(self, file: str, **values: object) -> None:
        """Change names of a TOML file, such as server/server.toml."""
        path = self.folder / file
        path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | values))

    def kill(self, name: str) -> None:
        """As a power cut does: without a word, and all that the process has started."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes.pop(name).wait()

    def say(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        return log.read_text("utf-8", "replace") if log.is_file() else ""

    def events(self) -> list[dict[str, Any]]:
        live = self.run / "live.jsonl"
        text = live.read_bytes() if live.is_file() else b""
        whole, _, _ = text.rpartition(b"\n")  # without a line that is being written
        return [json.loads(line) for line in whole.splitlines()]

    def wait_until(
        self, condition: Callable[[], bool], seconds: float = PATIENCE_S, poll: float = 0.1
    ) -> None:
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > seconds:
                logs = "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in self._logs())
                raise AssertionError(f"not within {seconds} s\n{logs}")
            time.sleep(poll)

    def wait_for_round(self, number: int) -> None:
        self.wait_until(
            lambda: any(
                e["event"] == "round" and e["record"]["round"] >= number for e in self.events()
            )
        )

    def wait_for_end(self, name: str, seconds: float = PATIENCE_S) -> int:
        """The exit code of a process that ends by itself."""
        process = self.processes[name]
        self.wait_until(lambda: process.poll() is not None, seconds)
        return process.returncode

    def stop(self) -> None:
        """End every process and all that it has started, gently first."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))


@contextmanager
def deploy(
    folder: Path,
    nodes: Sequence[str],
    classes: Sequence[str],
    images: Path,
    clip: Path | None,
    *settings: str,
) -> Iterator[Deployment]:
    """A deployment of these nodes on free ports, whose processes end with the block."""
    from fedapt.cli.app import main

    arguments = ["--server", f"127.0.0.1:{find_port()}", "--data", str(images)]
    for node in nodes:
        arguments += ["--node", node]
    for setting in (*([f"model.name={clip}"] if clip else []), *settings):
        arguments += ["-o", setting]
    assert (
        main(["federation", "init", str(folder), "--classes", ",".join(classes), *arguments]) == 0
    )
    for path in (folder / "nodes").glob("*/node.toml") if clip else ():
        path.write_text(path.read_text() + f'model = "{clip}"\n')
    deployment = Deployment(folder)
    try:
        yield deployment
    finally:
        deployment.stop()
