"""What the page looks at in a file's bytes before the browser decodes it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.support.node import needs_node, run_module

pytestmark = needs_node

ORIENTATION = 0x0112


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned(kind: str, *, big: bool) -> bytes:
    exif = Image.Exif()
    exif.endian = ">" if big else "<"
    exif[0x010F] = "a camera"
    exif[ORIENTATION] = 6
    return save(Image.new("RGB", (8, 6)), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("big", [True, False])
def test_the_orientation_is_forgotten(tmp_path: Path, kind: str, big: bool) -> None:
    data = turned(kind, big=big)
    assert Image.open(io.BytesIO(data)).getexif()[ORIENTATION] == 6
    body = "module.forgetOrientation(data); return data;"
    changed = run_module(tmp_path, "decode.js", body, None, data)
    assert sum(a != b for a, b in zip(data, changed, strict=True)) == 1
    position = next(i for i, (a, b) in enumerate(zip(data, changed, strict=True)) if a != b)
    assert (data[position], changed[position]) == (6, 1)


@pytest.mark.parametrize("cut", [0, 1, 3, 20, 40, 60])
def test_a_file_that_is_cut_off_stops_nothing(tmp_path: Path, cut: int) -> None:
    data = turned("JPEG", big=True)[:cut]
    body = "module.forgetOrientation(data); return data;"
    assert len(run_module(tmp_path, "decode.js", body, None, data)) == cut


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("P", (4, 4)), "PNG", True),
        (Image.new("1", (4, 4)), "PNG", True),
        (Image.new("P", (4, 4)), "GIF", True),
        (Image.new("L", (4, 4)), "PNG", False),
        (Image.new("RGBA", (4, 4)), "PNG", False),
        (Image.new("RGB", (4, 4)), "JPEG", False),
    ],
)
def test_palettes_are_seen(tmp_path: Path, image: Image.Image, kind: str, expected: bool) -> None:
    body = "return String(module.hasPalette(data));"
    found = run_module(tmp_path, "decode.js", body, None, save(image, kind))
    assert found == str(expected).lower().encode()
