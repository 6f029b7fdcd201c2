"""Commands whose standard streams are closed, strict, full, or read by someone who leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

RUNTIME, FEDAPT = ["-m", "fedapt_runtime"], ["-m", "fedapt.cli"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two domains of two classes; one image has a name that is not UTF-8, and is none."""
    for domain in ("a", "b"):
        for name in ("mug", "pen"):
            folder = tmp_path / "photos" / domain / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "1.png")
    (tmp_path / "photos" / "a" / "mug" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    return tmp_path / "photos"


def run(
    module: list[str], *arguments: object, closed: tuple[int, ...] = (), **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """A process of its own, without the streams of these numbers."""

    def close() -> None:
        for number in closed:
            os.close(number)

    command = [sys.executable, *module, *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    done = subprocess.run(command, check=False, timeout=120, preexec_fn=close, **options)
    assert b"Traceback" not in (done.stderr or b"")
    assert b"Exception ignored" not in (done.stderr or b"")
    return done


def test_rows_for_a_closed_stdout_are_an_error(tiny_model: Path, photos: Path) -> None:
    done = run(RUNTIME, "classify", tiny_model, photos, closed=(1,))
    assert done.returncode == 8
    assert b"error: stdout: found Bad file descriptor; expected a stream that can be" in done.stderr


def test_a_list_from_a_closed_stdin_is_an_error(tiny_model: Path) -> None:
    done = run(RUNTIME, "classify", tiny_model, "-", closed=(0,))
    assert (done.returncode, done.stdout) == (8, b"")
    assert b"error: stdin: found a closed standard input; expected images" in done.stderr


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_job_with_a_file_needs_no_streams(
    tiny_model: Path, photos: Path, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    out = tmp_path / "rows.jsonl"
    done = run(RUNTIME, "classify", tiny_model, photos, "--out", out, closed=closed)
    assert done.returncode == 0
    assert done.stdout in (b"", None)
    lines = out.read_bytes().decode("utf-8", "surrogateescape").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 5  # and nothing that was written to a stream


def test_messages_for_a_closed_stderr_stay_out_of_the_rows(tiny_model: Path, photos: Path) -> None:
    done = run(RUNTIME, "classify", tiny_model, photos, closed=(2,))
    assert done.returncode == 0
    assert len([json.loads(line) for line in done.stdout.splitlines() if b"caf" not in line]) == 4


@pytest.mark.parametrize(
    ("options", "name"),
    [([], b"a/mug/caf\xe9.jpg"), (["--json"], b"a/mug/caf\\udce9.jpg")],
    ids=["text", "json"],
)
def test_a_strict_stdout_takes_every_name(photos: Path, options: list[str], name: bytes) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = run(FEDAPT, "data", "check", photos, *options, env=environment)
    assert done.returncode == 4
    assert name in done.stdout


def test_fedapt_tells_a_closed_stdout(photos: Path) -> None:
    done = run(FEDAPT, "data", "check", photos, closed=(1,))
    assert done.returncode == 8
    assert b"error: stdout: found Bad file descriptor" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_fedapt_tells_a_full_stdout(photos: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run(FEDAPT, "data", "check", photos, stdout=full)
    assert done.returncode == 8
    assert b"error: stdout: found No space left on device" in done.stderr
