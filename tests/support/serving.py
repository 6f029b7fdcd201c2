"""A server in a process of its own, as a user starts it, and pictures to send."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fedapt_runtime.head import read_head
from tests.support.fusing import save_head

TOKEN = "a-token-of-enough-characters"


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        log: its access log, JSON lines.
    """

    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def resident_bytes(self) -> int:
        """Memory that the process holds (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


@contextmanager
def running(folder: Path, *arguments: object, code: str | None = None) -> Iterator[Server]:
    """`fedapt-runtime serve ... --port 0`, or Python code that serves."""
    command = [sys.executable, "-m", "fedapt_runtime", "serve", *map(str, arguments), "--port", "0"]
    if code is not None:
        command = [sys.executable, "-c", code, *map(str, arguments)]
    log = folder / "access.jsonl"
    with log.open("w") as stdout:
        process = subprocess.Popen(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        assert process.stderr is not None
        said: list[str] = []
        try:
            for line in process.stderr:
                said.append(line)
                if line.startswith("serving at "):
                    break
            else:
                raise AssertionError("".join(said))
            yield Server(process, said[-1].removeprefix("serving at ").strip(), log)
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def picture(
    colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (80, 72)
) -> bytes:
    """A PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def as_json(*images: bytes, **fields: Any) -> dict[str, Any]:
    """The body of a question in JSON."""
    return {"images": [base64.b64encode(image).decode() for image in images], **fields}


def write_renamed_head(head: Path, out: Path, suffix: str) -> Path:
    """The same head with other class names: which head answered stands in every label."""
    import dataclasses

    read = read_head(head)
    names = tuple(f"{name}{suffix}" for name in read.manifest.classes)
    save_head(read.tensors, dataclasses.replace(read.manifest, classes=names), out)
    return out
