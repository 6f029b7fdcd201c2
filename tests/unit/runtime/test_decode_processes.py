"""Decoding in processes gives what decoding in threads gives, and no process outlives its job."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from fedapt_runtime import Classifier, Preprocessing
from fedapt_runtime.decode_processes import CHUNK, decode_in_processes
from fedapt_runtime.errors import InputError, RuntimeFailure
from fedapt_runtime.pipeline import Decoded, Image, decode_ahead
from fedapt_runtime.sources import find_images

PREPROCESSING = Preprocessing((32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGES = CHUNK + 4


def write_photos(folder: Path) -> list[str]:
    """JPEGs of several sizes; one is damaged, one has a name that is no text, one is missing."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(IMAGES - 3):
        pixels = draw.integers(0, 256, (40 + i, 90 - i, 3), np.uint8)
        PillowImage.fromarray(pixels).save(folder / f"{i:02}.jpg")
    (folder / "damaged.jpg").write_bytes((folder / "00.jpg").read_bytes()[:300])
    odd = folder / os.fsdecode(b"caf\xe9.png")
    PillowImage.new("RGB", (50, 60), (1, 2, 3)).save(odd)
    return [*sorted(map(str, folder.iterdir())), str(folder / "missing.jpg")]


def decode(images: list[Image], **options: bool) -> list[Decoded]:
    return list(decode_in_processes(images, PREPROCESSING, 2, 4, **options))


def same(found: Decoded, expected: Decoded) -> bool:
    if found.name != expected.name or str(found.error) != str(expected.error):
        return False
    if found.pixels is None or expected.pixels is None:
        return found.pixels is expected.pixels
    return np.array_equal(found.pixels, expected.pixels)


def test_files_and_members_decode_as_in_threads(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.write(paths[0], "whole.jpg")
        packed.writestr("cut.jpg", b"\xff\xd8\xff")
    with tarfile.open(tmp_path / "b.tar", "w") as bundle:
        bundle.add(paths[1], "whole.jpg")
    images: list[Image] = [*paths, np.full((40, 50, 3), 7, np.uint8)]
    images += find_images([str(tmp_path / "a.zip"), str(tmp_path / "b.tar")])
    expected = list(decode_ahead(images, PREPROCESSING, 2, 4))
    found = decode(images)
    assert len(found) == len(expected) == IMAGES + 4
    assert all(map(same, found, expected))
    readable = [item for item in found if item.pixels is not None]
    assert len(readable) == IMAGES + 4 - 3
    assert {type(item.error).__name__ for item in found} == {"ImageError", "NoneType"}
    assert multiprocessing.active_children() == []


def test_a_member_that_cannot_be_read_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    PillowImage.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with zipfile.ZipFile(path, "w") as packed:
        packed.write(tmp_path / "a.png", "a.png")
    data = bytearray(path.read_bytes())
    data[60] ^= 255  # the checksum no longer fits
    path.write_bytes(data)
    images = list(find_images([str(path)]))
    (found,) = decode(list(images))
    (expected,) = decode_ahead(images, PREPROCESSING, 1, 1)
    assert found.error is not None
    assert same(found, expected)


def test_options_reach_the_processes(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    PillowImage.fromarray(pixels).save(path)
    for options in ({"fast": True}, {"resize": False}):
        (found,) = decode([str(path)], **options)
        (expected,) = decode_ahead([str(path)], PREPROCESSING, 1, 1, **options)
        (exact,) = decode_ahead([str(path)], PREPROCESSING, 1, 1)
        assert same(found, expected)
        assert not same(found, exact)


def test_a_wrong_array_is_refused() -> None:
    with pytest.raises(InputError, match=r"image #1: found an array of float64 \[4, 4, 3\]"):
        decode([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3))])  # type: ignore[list-item]


def test_images_are_read_only_a_few_chunks_ahead() -> None:
    read = 0

    def images() -> Iterator[Any]:
        nonlocal read
        while True:
            read += 1
            yield np.zeros((32, 32, 3), np.uint8)

    rows = decode_in_processes(images(), PREPROCESSING, 2, 4)
    assert next(rows).name == "#0"
    assert read == 2 * 2 * CHUNK
    rows.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


class Deadly(Preprocessing):
    """Ends the process that uses it."""

    def load(self, *arguments: object, **options: object) -> Any:
        os._exit(9)


def test_a_process_that_dies_ends_the_job_with_a_message() -> None:
    deadly = Deadly(PREPROCESSING.size, PREPROCESSING.mean, PREPROCESSING.std)
    with pytest.raises(RuntimeFailure) as error:
        list(decode_in_processes([np.zeros((4, 4, 3), np.uint8)], deadly, 2, 4))
    assert "decoding processes: found a process that ended before its work" in str(error.value)
    assert multiprocessing.active_children() == []


def test_rows_of_a_real_model_are_the_same(tiny_model: Path, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos")
    classifier = Classifier.load(tiny_model, backend="onnxruntime", device="cpu")
    found = list(classifier.stream(paths, decode_processes=2, batch_size=3))
    assert found == list(classifier.stream(paths, batch_size=3))
    assert sum(row.error is None for row in found) == IMAGES - 2


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_process_outlives_the_job(
    tiny_model: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    path = tmp_path / "a.png"
    PillowImage.new("RGB", (70, 70)).save(path)
    command = [sys.executable, "-m", "fedapt_runtime", "classify", str(tiny_model), "-"]
    with subprocess.Popen(
        [*command, "--decode-processes", "2", "--backend", "onnxruntime"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as job:
        assert job.stdin is not None
        assert job.stdout is not None
        assert job.stderr is not None
        job.stdin.write(f"{path}\n" * 20 * CHUNK)
        job.stdin.flush()  # and the list stays open
        assert '"label"' in job.stdout.readline()
        if sent == signal.SIGINT:  # Ctrl-C reaches every process
            os.killpg(job.pid, sent)
        else:
            job.send_signal(sent)
        # the decoding processes hold this pipe: it ends when the last of them has ended
        messages = job.stderr.read()
        assert job.wait() == code
    assert "Traceback" not in messages
