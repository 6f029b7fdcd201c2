"""Flower's own programs run fedapt's app: a SuperLink, two SuperNodes and `flwr run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import tomli_w

from fedapt.core.config import read_config
from fedapt.core.records import read_records
from fedapt.core.report import Reporter
from fedapt.federation.flower.files import Deployment, write_deployment
from fedapt.model.checkpoint import load_checkpoint
from fedapt.run.train import train
from tests.support.federation import PATIENCE_S, find_port
from tests.support.tiny import CLASSES, DOMAINS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

PROGRAMS = Path(sys.executable).parent
SETTINGS = ("train.rounds=1", "train.lr=0.1", "train.batch_size=8", "prompt.context_length=4")


@contextmanager
def flower(home: Path) -> Iterator[Callable[..., Path]]:
    """Starts Flower's programs and gives their logs; all that they have started ends with it."""
    variables = {"FLWR_HOME": str(home), "OMP_NUM_THREADS": "1"}
    variables |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    variables["PATH"] = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
    processes: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, *arguments: str) -> Path:
        log = home / f"{len(processes)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [str(PROGRAMS / arguments[0]), *arguments[1:]],
                cwd=folder,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env=os.environ | variables,
            )
        processes.append(process)
        return log

    try:
        yield start
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, kind)
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)


def wait_for(log: Path, text: str, seconds: float = PATIENCE_S) -> None:
    started, told = time.monotonic(), ""
    while not log.is_file() or text not in (told := log.read_text("utf-8", "replace")):
        assert time.monotonic() - started < seconds, f"no {text!r} in {told}"
        time.sleep(0.1)


def test_flowers_own_programs_run_the_app(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path
) -> None:
    port, home = find_port(), tmp_path / "home"
    config = read_config(None, SETTINGS, {"model.name": str(tiny_clip)})
    names = tuple(name.replace("_", " ") for name in CLASSES)
    nodes = {name: name for name in DOMAINS}
    address = f"127.0.0.1:{port}"
    write_deployment(tmp_path / "d", Deployment(address, names, nodes, "data", config))
    server = tmp_path / "d" / "server"
    home.mkdir()
    trial = {"address": address, "insecure": True}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"trial": trial}}))

    with flower(home) as start:
        where = ("--host", "127.0.0.1", "--port", str(port))
        offline = "--disable-runtime-dependency-installation"
        wait_for(start(server, "flower-superlink", "--insecure", *where, offline), "running on")
        for domain in DOMAINS:
            told = f'data="{tiny_images}" domain="{domain}" model="{tiny_clip}"'
            to = ("--superlink", address, "--port", str(find_port()))
            start(tmp_path, "flower-supernode", "--insecure", *to, "--node-config", told)
        log = start(tmp_path, "flwr", "run", str(server / "app"), "trial", "--stream")
        wait_for(server / "run" / "live.jsonl", '"event": "finished"')
        wait_for(log, "sketch: joined with domain sketch")

    records = read_records(server / "run" / "records.jsonl")
    assert [r["replies"] for r in records] == [2]
    assert not any("refused" in record for record in records)
    local = read_config(
        None, SETTINGS, {"model.name": str(tiny_clip), "data.root": str(tiny_images)}
    )
    train(local, tmp_path / "local", resume=False, device="cpu", reporter=Reporter())
    found, expected = (
        load_checkpoint(run / "checkpoint.safetensors")
        for run in (server / "run", tmp_path / "local")
    )
    assert found.info == expected.info
    assert all(found.learned[n].allclose(t, rtol=0, atol=1e-6) for n, t in expected.learned.items())
