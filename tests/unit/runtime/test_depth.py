"""Grey images of more than 8 bits: the same picture gives the same pixels at any depth."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedapt_runtime import Preprocessing
from fedapt_runtime.depth import scale_to_8_bits
from fedapt_runtime.errors import ImageError, ModelFileError

SIDE = 40
PLAIN = Preprocessing((24, 24), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OPENCLIP = dataclasses.replace(PLAIN, depth="openclip")


def ramp() -> np.ndarray:
    """uint8 [SIDE, SIDE], every level from 0 to 255 among others."""
    values = np.random.default_rng(3).permutation(SIDE * SIDE) % 256
    return values.reshape(SIDE, SIDE).astype(np.uint8)


def write_tiff(path: Path, array: np.ndarray, photometric: int = 1) -> Path:
    """A TIFF by hand, of any dtype and byte order: header, pixels, ten tags."""
    order = ">" if array.dtype.byteorder == ">" else "<"
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    data, bits = array.tobytes(), array.dtype.itemsize * 8
    tags = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: SIDE, 279: len(data), 339: kind}
    head = struct.pack(f"{order}2sHI", b"MM" if order == ">" else b"II", 42, 8 + len(data))
    entries = (
        struct.pack(f"{order}HHI" + ("HH" if tag in (258, 259, 262, 277, 339) else "I"), tag, *rest)
        for tag, value in tags.items()
        for rest in [(3, 1, value, 0) if tag in (258, 259, 262, 277, 339) else (4, 1, value)]
    )
    path.write_bytes(
        head + data + struct.pack(f"{order}H", len(tags)) + b"".join(entries) + b"\0" * 4
    )
    return path


def deep_images(folder: Path) -> dict[str, Path]:
    """The ramp at every depth that Pillow reads."""
    grey = ramp()
    wide = grey.astype("u2") * 257
    paths = {
        "png 16": folder / "16.png",
        "pgm 16": folder / "16.pgm",
        "tiff 16": folder / "16.tif",
        "float": folder / "float.tif",
    }
    Image.fromarray(wide).save(paths["png 16"])
    paths["pgm 16"].write_bytes(b"P5 40 40 65535\n" + wide.astype(">u2").tobytes())
    Image.fromarray(wide).save(paths["tiff 16"])
    Image.fromarray((grey / 255).astype("f4")).save(paths["float"])
    by_hand = {
        "big endian 16": wide.astype(">u2"),
        "int32 of 8 bits": grey.astype("<i4"),
        "int32 of 16 bits": wide.astype("<i4"),
        "int32": (grey.astype("i8") * (2**31 - 1) // 255).astype("<i4"),
        "uint32": grey.astype("<u4") * 16_843_009,
        "big endian float": (grey / 255).astype(">f4"),
    }
    for name, array in by_hand.items():
        paths[name] = write_tiff(folder / f"{name}.tif", array)
    return paths


def test_every_depth_gives_the_pixels_of_8_bits(tmp_path: Path) -> None:
    Image.fromarray(ramp()).save(tmp_path / "8.png")
    expected = PLAIN.load(tmp_path / "8.png")
    assert expected.std() > 10
    for name, path in deep_images(tmp_path).items():
        with Image.open(path) as image:
            assert image.mode not in ("L", "RGB"), name
        assert np.array_equal(PLAIN.load(path), expected), name


@pytest.mark.parametrize("name", ["png 16", "float"])
def test_openclips_depth_cuts_them_off(tmp_path: Path, name: str) -> None:
    path = deep_images(tmp_path)[name]
    cut = OPENCLIP.load(path)
    white = 1 if name == "float" else 255
    assert (cut >= white - 1).mean() > 0.9
    assert not np.array_equal(cut, PLAIN.load(path))


def test_12_bits_have_the_range_of_12_bits() -> None:
    image = Image.fromarray(np.array([[0, 2048, 4095]], dtype=np.uint16))
    image.tag_v2 = {258: (12,)}  # type: ignore[attr-defined]
    assert np.asarray(scale_to_8_bits(image, "x")).tolist() == [[0, 128, 255]]


def test_white_may_be_zero(tmp_path: Path) -> None:
    wide = ramp().astype("<u2") * 257
    plain = PLAIN.load(write_tiff(tmp_path / "a.tif", wide))
    turned = PLAIN.load(write_tiff(tmp_path / "b.tif", 65535 - wide, photometric=0))
    assert np.array_equal(turned, plain)


def test_a_dark_image_stays_dark() -> None:
    # the range is the mode's: no image is stretched by its own values
    image = Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16))
    assert np.asarray(scale_to_8_bits(image, "x")).tolist() == [[4] * 4] * 4


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([[0.0, 1.5]], "f4"), "a float image with values from 0 to 1.5"),
        (np.array([[-0.5, 0.5]], "f4"), "a float image with values from -0.5 to 0.5"),
        (np.array([[0.0, np.nan]], "f4"), "a float image with values from nan to nan"),
        (np.array([[0.0, np.inf]], "f4"), "a float image with values from 0 to inf"),
        (np.array([[-1000, 3000]], "i4"), "an integer image with values from -1000 to 3000"),
    ],
)
def test_values_whose_white_nobody_knows_are_refused(values: np.ndarray, found: str) -> None:
    with pytest.raises(ImageError, match=f"^x: found {found}; expected integers of 0 or more"):
        PLAIN.load(Image.fromarray(values), "x")
    assert OPENCLIP.load(Image.fromarray(values), "x").shape == (24, 24, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_8_bits_are_not_touched(mode: str) -> None:
    image = Image.new(mode, (3, 3))
    assert scale_to_8_bits(image, "x") is image


def test_an_artifact_without_the_field_has_openclips_depth() -> None:
    fields = PLAIN.to_dict()
    assert Preprocessing.from_dict(fields) == PLAIN
    del fields["depth"]
    assert Preprocessing.from_dict(fields) == OPENCLIP
    with pytest.raises(ModelFileError, match="found depth 'deep'; expected scale or openclip"):
        Preprocessing.from_dict(fields | {"depth": "deep"})


def test_signed_integers_of_8_bits_are_refused(tmp_path: Path) -> None:
    # Pillow reads -1 as 255: black would become white
    signed = write_tiff(tmp_path / "signed.tif", ramp().view(np.int8))
    with pytest.raises(ImageError, match="found an image of signed 8-bit integers; expected"):
        PLAIN.load(signed)
    unsigned = write_tiff(tmp_path / "unsigned.tif", ramp())
    assert np.array_equal(PLAIN.load(unsigned), PLAIN.load(Image.fromarray(ramp())))
