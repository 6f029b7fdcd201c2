"""Broken and malicious image files: each gives pixels or an ImageError, and nothing else."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedapt_runtime import Classifier, Preprocessing
from fedapt_runtime.errors import ImageError
from fedapt_runtime.sources import find_images

PREPROCESSING = Preprocessing((64, 64), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")
STATUS = Path("/proc/self/statm")
needs_statm = pytest.mark.skipif(not STATUS.exists(), reason=f"no {STATUS} on this system")


def encode(kind: str, side: int = 90, **options: object) -> bytes:
    """One noisy image in the format `kind`."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side + 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def load(path: Path) -> np.ndarray:
    return PREPROCESSING.load(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_files_are_read(tmp_path: Path, kind: str) -> None:
    array = load(write(tmp_path / "whole", encode(kind)))
    assert (array.shape, array.dtype) == ((64, 64, 3), np.uint8)
    assert array.std() > 10


@pytest.mark.parametrize("kind", [*FORMATS, "PPM", "MPO", "text"])
def test_a_fresh_process_knows_the_formats(tmp_path: Path, kind: str) -> None:
    # Pillow loads its decoders bit by bit, so what was read before must not matter
    path = write(tmp_path / "first", b"text" if kind == "text" else encode(kind))
    code = (
        "import sys\n"
        "from fedapt_runtime import Preprocessing\n"
        "from fedapt_runtime.errors import ImageError\n"
        "try:\n"
        "    Preprocessing((64, 64), (0, 0, 0), (1, 1, 1)).load(sys.argv[1])\n"
        "except ImageError as error:\n"
        "    print(error.found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, check=True, text=True, timeout=60
    )
    expected = "not an image of a known format\n" if kind == "text" else ""
    assert (done.stdout, done.stderr) == (expected, "")


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})]
)
def test_a_truncated_file_is_refused(
    tmp_path: Path, kind: str, options: dict[str, object], share: float
) -> None:
    data = encode(kind, **options)
    path = write(tmp_path / "cut.img", data[: int(len(data) * share)])
    with pytest.raises(
        ImageError, match=r"cut\.img: found an unreadable image \(.+\); expected a complete JPEG"
    ):
        load(path)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 11])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_ends_in_its_signature_is_refused(
    tmp_path: Path, kind: str, length: int
) -> None:
    path = write(tmp_path / "cut.img", encode(kind)[:length])
    with pytest.raises(ImageError, match=r"cut\.img: found .+; expected a complete JPEG"):
        load(path)


@pytest.mark.parametrize(
    "data",
    [b"Dear reader,\n" * 50, b"<html></html>", b"\0" * 1000, b"%PDF-1.7\n", b"GIF", b"\xff\xd8"],
    ids=["text", "html", "zeros", "pdf", "half a magic", "jpeg magic"],
)
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "renamed.jpg", data)
    with pytest.raises(ImageError, match=r"renamed\.jpg: found not an image of a known format"):
        load(path)


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "EPS"])
def test_formats_that_no_photo_needs_are_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "odd.png", encode(kind))
    with pytest.raises(ImageError, match=r"odd\.png: found not an image of a known format"):
        load(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"empty\.png: found an empty file; expected"):
        load(write(tmp_path / "empty.png", b""))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(ImageError, match=r"x\.jpg: found a folder; expected a complete JPEG"):
        load(tmp_path / "x.jpg")


def test_a_missing_file_and_a_name_with_a_null_byte_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png: found no such file"):
        load(tmp_path / "none.png")
    with pytest.raises(ImageError, match="found no such file"):
        load(tmp_path / "a\0b.png")


def test_symlink_loops_are_refused_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "up.png").symlink_to(tmp_path, target_is_directory=True)
    write(tmp_path / "c.png", encode("PNG"))
    with pytest.raises(ImageError, match=r"a\.png: found no such file"):
        load(tmp_path / "a.png")
    # the loop of folders is not entered, the loop of files becomes two rows with an error
    found = [Path(path).name for path in find_images([tmp_path])]
    assert found == ["a.png", "b.png", "c.png"]


def test_a_symlink_to_an_image_is_read(tmp_path: Path) -> None:
    target = write(tmp_path / "c.png", encode("PNG"))
    (tmp_path / "link.png").symlink_to(target)
    assert np.array_equal(load(tmp_path / "link.png"), load(target))


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    errors: list[str] = []

    def read() -> None:
        try:
            load(path)
        except ImageError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert "pipe.png: found not a regular file; expected" in errors[0]


def test_a_device_is_refused() -> None:
    with pytest.raises(ImageError, match="/dev/zero: found not a regular file"):
        load(Path("/dev/zero"))


def resident_bytes() -> int:
    return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_statm
def test_300_broken_files_in_a_row(tiny_model: Path, tmp_path: Path) -> None:
    # each decodes to 4 MB before its bytes end: kept, they would be 1.2 GB
    data = encode("JPEG", side=1150, quality=20)
    path = write(tmp_path / "cut.jpg", data[: len(data) * 3 // 4])
    good = write(tmp_path / "good.png", encode("PNG"))
    classifier = Classifier.load(tiny_model, device="cpu")
    classifier([good, path])
    before = resident_bytes()
    most, rows = 0, []
    for row in classifier.stream([path] * 300 + [good]):
        rows.append(row)
        most = max(most, resident_bytes())
    assert len(rows) == 301
    assert all("cut.jpg: found an unreadable image" in str(row.error) for row in rows[:300])
    assert (rows[300].error, rows[300].label is None) == (None, False)
    assert most - before < 150_000_000


def flip(data: bytes, seed: int) -> bytes:
    """Change a few bytes, half of the time in the header."""
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    end = len(data) if seed % 2 else min(len(data), 120)
    for place in rng.integers(0, end, int(rng.integers(1, 9))):
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_give_pixels_or_an_image_error(tmp_path: Path, kind: str) -> None:
    data = encode(kind)
    errors, arrays = {}, []
    for seed in range(12):
        path = write(tmp_path / f"{seed}.img", flip(data, seed))
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                arrays.append(load(path))
            except ImageError as error:
                errors[path] = str(error)
        assert [str(item.message) for item in seen] == []
    assert all((array.shape, array.dtype) == ((64, 64, 3), np.uint8) for array in arrays)
    assert all(text.startswith(f"{path}: found ") for path, text in errors.items())
    assert len(arrays) + len(errors) == 12
    assert errors


def test_flipped_bytes_through_the_classifier(tiny_model: Path, tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{kind}-{seed}.img", flip(encode(kind), seed))
        for kind in FORMATS
        for seed in range(4)
    ]
    rows = Classifier.load(tiny_model, device="cpu")(paths, batch_size=5)
    assert [row.path for row in rows] == [str(path) for path in paths]
    assert all((row.label is None) == (row.error is not None) for row in rows)
    assert {row.error is None for row in rows} == {True, False}
