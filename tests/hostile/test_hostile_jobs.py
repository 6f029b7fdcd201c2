"""Whole jobs against broken files, a full disk, folders that cannot be read, and Ctrl-C."""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedapt_runtime.journal import part_path

ODD = [b"new\nline.png", b"tab\there.png", b"-rf.png", b"caf\xe9 \xff.png", b"a::b #?%20.png"]


def encode(kind: str = "PNG", side: int = 70) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedapt_runtime", "classify", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(*arguments: object, **options: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process of its own."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return process.returncode, out, err


def read_rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty images, some with odd names."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ODD:
        (folder / os.fsdecode(name)).write_bytes(encode(side=66))
    for i in range(40 - len(ODD)):
        (folder / f"{i:02}.png").write_bytes(encode(side=64 + i))
    return folder


def test_10_000_broken_files_in_a_row(tiny_model: Path, tmp_path: Path) -> None:
    jpeg, png = encode("JPEG", 200), encode("PNG", 200)
    broken = [b"", b"text", jpeg[:300], jpeg[:3000], png[:40], png[:900], b"\0" * 5000, b"GIF89a"]
    paths = []
    for i, data in enumerate(broken):
        path = tmp_path / f"{i}.img"
        path.write_bytes(data)
        paths.append(path)
    (tmp_path / "good.png").write_bytes(png)
    names = [str(paths[i % len(paths)]) for i in range(9_998)]
    names += [str(tmp_path / "none.png"), str(tmp_path), str(tmp_path / "good.png")]
    listed = tmp_path / "names.txt"
    listed.write_text("\n".join(names))
    out = tmp_path / "rows.jsonl"
    code, stdout, _ = finish(tiny_model, listed, "--out", out, "--json")
    summary = json.loads(stdout)
    assert (code, summary["images"], summary["errors"]) == (0, 10_001, 10_000)
    assert sum(summary["kinds"].values()) == 10_000
    rows = read_rows(out)
    assert [row["path"] for row in rows] == names
    assert all(row["error"].startswith(f"{row['path']}: found ") for row in rows[:-1])
    assert (rows[-1]["error"], rows[-1]["label"] is None) == (None, False)


def limit_files(n_bytes: int) -> None:
    """Writes beyond this many bytes of one file fail, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("share", [0.02, 0.95])
def test_a_full_disk_keeps_the_rows_and_the_older_file(
    tiny_model: Path, photos: Path, tmp_path: Path, suffix: str, share: float
) -> None:
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"rows.{suffix}"
    assert finish(tiny_model, photos, "--out", whole)[0] == 0
    jsonl = tmp_path / "rows of the journal.jsonl"
    assert finish(tiny_model, photos, "--out", jsonl)[0] == 0
    room = int(share * jsonl.stat().st_size)
    out.write_bytes(b"older")
    code, stdout, err = finish(
        tiny_model, photos, "--out", out, preexec_fn=lambda: limit_files(room)
    )
    assert (code, stdout) == (8, "")
    assert err.splitlines()[-1].startswith(f"error: {out}: found File too large; expected a file")
    assert out.read_bytes() == b"older"
    left = {path.name for path in tmp_path.iterdir()} - {"photos", whole.name, jsonl.name}
    assert left <= {out.name, part_path(out).name}
    code, _, _ = finish(tiny_model, photos, "--out", out, "--resume")
    assert code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not part_path(out).exists()


def bound_by_permissions() -> dict[str, Any]:
    """Options of a process that permissions bind, as they do not bind root."""
    if os.geteuid() != 0:
        return {}
    libc = ctypes.CDLL(None, use_errno=True)

    def drop() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                os._exit(99)

    command = [sys.executable, "-c", ""]
    if subprocess.run(command, check=False, preexec_fn=drop).returncode == 99:
        pytest.skip("this runs as root, which may read everything and cannot give that up")
    return {"preexec_fn": drop}


def test_a_folder_that_cannot_be_read_stops_before_the_work(
    tiny_model: Path, photos: Path, tmp_path: Path
) -> None:
    options = bound_by_permissions()
    closed = photos / "closed"
    closed.mkdir()
    closed.chmod(0)
    out = tmp_path / "rows.jsonl"
    try:
        code, stdout, err = finish(tiny_model, photos, "--out", out, **options)
    finally:
        closed.chmod(0o755)
    assert (code, stdout) == (8, "")
    assert f"{closed}: found a folder that cannot be read (Permission denied)" in err
    assert not out.exists()
    assert not part_path(out).exists()


def test_a_file_that_cannot_be_read_is_a_row(tiny_model: Path, photos: Path) -> None:
    options = bound_by_permissions()
    (photos / "07.png").chmod(0)
    paths = [photos / name for name in ("06.png", "07.png", "08.png")]
    code, stdout, _ = finish(tiny_model, *paths, **options)
    rows = [json.loads(line) for line in stdout.splitlines()]
    assert (code, len(rows)) == (0, 3)
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "07.png: found an unreadable image ([Errno 13] Permission denied" in rows[1]["error"]


def test_ctrl_c_in_the_middle_keeps_the_rows(
    tiny_model: Path, photos: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((1600, 1600)).save(tmp_path / "big.png", compress_level=1)
    names = sorted(str(path) for path in photos.iterdir() if "\n" not in path.name)
    listed = tmp_path / "names.txt"
    listed.write_bytes(os.fsencode("\n".join(names + [str(tmp_path / "big.png")] * 60)))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    out.write_bytes(b"older")
    arguments = (tiny_model, listed, "--batch-size", 4)
    process = start(*arguments, "--out", out)
    deadline = time.monotonic() + 60
    while not part_path(out).exists() or part_path(out).read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    told = f"interrupted: finished rows are in {part_path(out)}; continue with --resume"
    assert err.splitlines()[-1] == told
    assert "Traceback" not in err
    assert out.read_bytes() == b"older"
    code, stdout, _ = finish(*arguments, "--out", out, "--resume", "--json")
    assert (code, json.loads(stdout)["images"]) == (0, 99)
    assert 0 < json.loads(stdout)["resumed"] < 99
    assert finish(*arguments, "--out", whole)[0] == 0
    assert [row["path"] for row in read_rows(out)] == [row["path"] for row in read_rows(whole)]
    assert [row["label"] for row in read_rows(out)] == [row["label"] for row in read_rows(whole)]


def test_odd_names_on_the_command_line(tiny_model: Path, photos: Path, tmp_path: Path) -> None:
    paths = [os.fsencode(photos) + b"/" + name for name in ODD]
    out = tmp_path / os.fsdecode(b"r\xf6ws \xff.jsonl")
    command = [os.fsencode(sys.executable), b"-m", b"fedapt_runtime", b"classify"]
    command += [os.fsencode(tiny_model), *paths, b"--out", os.fsencode(out)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [os.fsencode(row["path"]) for row in read_rows(out)] == paths
    assert all(row["error"] is None for row in read_rows(out))
