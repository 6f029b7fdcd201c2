"""Pixels and normalised values against OpenCLIP's own transform, bit for bit; and the limits."""

from __future__ import annotations

import dataclasses
import io
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fedapt.model.open_clip_import import import_open_clip
from fedapt_runtime import preprocess
from fedapt_runtime.errors import ImageError, ModelFileError
from fedapt_runtime.preprocess import Preprocessing
from tests.support.normalising import normalise
from tests.support.paths import PHOTOS, needs_photos

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# (width, height) around the target of 64: equal, one off, smaller, larger, long, slivers
SIZES = (
    (64, 64),
    (63, 65),
    (65, 64),
    (31, 17),
    (17, 31),
    (300, 201),
    (201, 301),
    (129, 128),
    (1, 90),
    (90, 1),
)


def make(
    size: tuple[int, int] = (64, 64), interpolation: str = "bicubic", resize_mode: str = "shortest"
) -> Preprocessing:
    return Preprocessing(size, MEAN, STD, interpolation, resize_mode)


def noise(size: tuple[int, int], channels: int, seed: int = 0) -> np.ndarray:
    shape = (size[1], size[0], channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return pixels if channels > 1 else pixels[..., 0]


def write_rgb(path: Path, size: tuple[int, int]) -> Path:
    path = path.with_suffix(".png")
    Image.fromarray(noise(size, 3)).save(path)
    return path


def write_grey(path: Path, size: tuple[int, int]) -> Path:
    path = path.with_suffix(".png")
    Image.fromarray(noise(size, 1)).save(path)
    return path


def write_grey_alpha(path: Path, size: tuple[int, int]) -> Path:
    path = path.with_suffix(".png")
    Image.fromarray(noise(size, 2), mode=None).save(path)
    return path


def write_palette(path: Path, size: tuple[int, int]) -> Path:
    path = path.with_suffix(".png")
    Image.fromarray(noise(size, 3)).quantize(17).save(path)
    return path


def write_palette_with_one_transparent(path: Path, size: tuple[int, int]) -> Path:
    path = path.with_suffix(".gif")
    Image.fromarray(noise(size, 3)).quantize(17).save(path, transparency=3)
    return path


def write_palette_with_alpha(path: Path, size: tuple[int, int]) -> Path:
    path = path.with_suffix(".png")
    image = Image.fromarray(noise(size, 3)).quantize(17)
    image.save(path, transparency=bytes(range(0, 170, 10)))
    return path


def write_rgba(path: Path, size: tuple[int, int]) -> Path:
    path = path.with_suffix(".png")
    Image.fromarray(noise(size, 4)).save(path)
    return path


def write_cmyk(path: Path, size: tuple[int, int]) -> Path:
    path = path.with_suffix(".jpg")
    Image.frombytes("CMYK", size, noise(size, 4).tobytes()).save(path, quality=90)
    return path


def write_two_frames(path: Path, size: tuple[int, int]) -> Path:
    """An MPO, as some phones write under the name .jpg; the first frame counts."""
    path = path.with_suffix(".jpg")
    first, second = (Image.fromarray(noise(size, 3, seed)) for seed in (0, 1))
    first.save(path, "MPO", save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    return path


def write_16_bit(path: Path, size: tuple[int, int]) -> Path:
    path = path.with_suffix(".png")
    values = np.random.default_rng(0).integers(0, 65536, (size[1], size[0]), dtype=np.uint16)
    Image.fromarray(values).save(path)
    return path


def write_1_bit(path: Path, size: tuple[int, int]) -> Path:
    path = path.with_suffix(".png")
    Image.fromarray(noise(size, 1)).convert("1").save(path)
    return path


WRITERS: dict[str, Callable[[Path, tuple[int, int]], Path]] = {
    "RGB": write_rgb,
    "L": write_grey,
    "LA": write_grey_alpha,
    "P": write_palette,
    "P one transparent": write_palette_with_one_transparent,
    "P alpha": write_palette_with_alpha,
    "RGBA": write_rgba,
    "RGB two frames": write_two_frames,
    "CMYK": write_cmyk,
    "I;16": write_16_bit,
    "1": write_1_bit,
}


def ours(path: Path, preprocessing: Preprocessing) -> Tensor:
    """Float32 [3, height, width]."""
    values = normalise(preprocessing, preprocessing.load(path))
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def theirs(path: Path, preprocessing: Preprocessing) -> Tensor:
    """Float32 [3, height, width], from OpenCLIP."""
    transform = import_open_clip().transform.image_transform(
        preprocessing.size,
        is_train=False,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
        resize_mode=preprocessing.resize_mode,
    )
    with warnings.catch_warnings():
        # Pillow warns of palettes with alpha when OpenCLIP converts them
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            return transform(image)


def assert_same(path: Path, preprocessing: Preprocessing) -> None:
    found, expected = ours(path, preprocessing), theirs(path, preprocessing)
    assert found.dtype == expected.dtype == torch.float32
    assert found.shape == expected.shape == (3, *preprocessing.size)
    assert torch.equal(found, expected), float((found - expected).abs().max())


@pytest.mark.parametrize("mode", WRITERS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_mode_and_size_is_openclips(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    path = WRITERS[mode](tmp_path / "image", size)
    with Image.open(path) as image:
        assert image.mode == mode.split()[0]
    for interpolation in ("bicubic", "bilinear"):
        for resize_mode in ("shortest", "squash"):
            plain = make((64, 64), interpolation, resize_mode)
            # beyond 8 bits OpenCLIP's are the bits of its own depth, and of no other mode
            assert_same(path, dataclasses.replace(plain, depth="openclip"))
            if mode != "I;16":
                assert_same(path, plain)


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (1, 64)], ids=str)
def test_squash_takes_height_before_width(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_rgb(tmp_path / "image", (100, 70))
    preprocessing = make(size, resize_mode="squash")
    assert preprocessing.load(path).shape == (*size, 3)
    assert_same(path, preprocessing)


def test_the_options_make_a_difference(tmp_path: Path) -> None:
    path = write_rgb(tmp_path / "image", (100, 70))
    arrays = [
        make((64, 64), interpolation, resize_mode).load(path)
        for interpolation in ("bicubic", "bilinear")
        for resize_mode in ("shortest", "squash")
    ]
    assert len({array.tobytes() for array in arrays}) == 4


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    # orientation 6: a viewer turns it by 90 degrees, and the red left half would go to the top
    pixels = np.zeros((96, 96, 3), np.uint8)
    pixels[:, :48, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "rotated.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    array = make().load(path)
    assert array[:, :24, 0].min() > 200
    assert array[:, 40:, 0].max() < 60
    assert_same(path, make())


@needs_photos
@pytest.mark.photos
def test_photos_are_openclips() -> None:
    photos = sorted(path for path in PHOTOS.rglob("*") if path.suffix == ".jpg")[::25]
    assert len(photos) > 90
    for path in photos:
        assert_same(path, make((224, 224)))


def test_centre_crop_rounds_half_to_even(tmp_path: Path) -> None:
    # nothing to resize; (5 - 2) / 2 = 1.5 -> 2 and (7 - 2) / 2 = 2.5 -> 2
    for width, left in ((5, 2), (7, 2), (4, 1)):
        pixels = np.repeat(np.arange(width, dtype=np.uint8)[None, :, None] * 10, 2, 0)
        image = Image.fromarray(pixels.repeat(3, 2))
        found = make((2, 2)).image_to_array(image)
        assert found[0, :, 0].tolist() == [left * 10, (left + 1) * 10]


def test_paths_files_and_decoded_images_are_the_same(tmp_path: Path) -> None:
    path = write_rgb(tmp_path / "image", (80, 70))
    expected = make().load(path)
    assert expected.dtype == np.uint8
    assert np.array_equal(make().load(str(path)), expected)
    assert np.array_equal(make().load(io.BytesIO(path.read_bytes())), expected)
    with Image.open(path) as image:
        assert np.array_equal(make().load(image), expected)


def test_json_round_trip() -> None:
    preprocessing = make((48, 80), "bilinear", "squash")
    fields = preprocessing.to_dict()
    assert fields["size"] == (48, 80)
    assert Preprocessing.from_dict({**fields, "size": [48, 80]}) == preprocessing


def test_shortest_of_a_rectangle_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"size \(48, 80\) with resize mode 'shortest'"):
        make((48, 80))
    assert make((48, 80), resize_mode="squash").size == (48, 80)


@pytest.mark.parametrize(
    ("interpolation", "resize_mode"), [("random", "squash"), ("bicubic", "longest")]
)
def test_unknown_options_are_refused(interpolation: str, resize_mode: str) -> None:
    text = (
        f"found interpolation '{interpolation}', resize mode '{resize_mode}'; expected bicubic or"
    )
    with pytest.raises(ModelFileError, match=text):
        make((64, 64), interpolation, resize_mode)


def write_png_header(path: Path, width: int, height: int) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(
    ("size", "text"),
    [
        # Pillow itself stops at twice its own limit, ours starts above 100,000,000
        ((60_000, 60_000), "an image of more than 100,000,000 pixels"),
        ((10_001, 10_000), "10001 x 10000 pixels, over the limit of 100,000,000"),
    ],
)
def test_a_pixel_bomb_is_refused(tmp_path: Path, size: tuple[int, int], text: str) -> None:
    path = write_png_header(tmp_path / "bomb.png", *size)
    with pytest.raises(ImageError, match=rf"bomb\.png: found {text}"):
        make().load(path)


def test_an_image_at_the_limit_passes_the_size_check(tmp_path: Path) -> None:
    path = write_png_header(tmp_path / "large.png", 10_000, 10_000)
    # its bytes end early, which is another error: the size was accepted
    with pytest.raises(ImageError, match=r"large\.png: found an unreadable image"):
        make().load(path)


def test_a_sliver_counts_as_large_as_it_becomes(tmp_path: Path) -> None:
    # 1 x 30 000 becomes 64 x 1 920 000 = 122 880 000 pixels; 1 x 20 000 becomes 81 920 000
    path = write_rgb(tmp_path / "sliver", (1, 30_000))
    with pytest.raises(ImageError, match="1 x 30000 pixels, over the limit"):
        make().load(path)
    assert make((64, 64), resize_mode="squash").load(path).shape == (64, 64, 3)


def test_a_decoded_sliver_is_refused_too() -> None:
    with pytest.raises(ImageError, match="#4: found 1 x 30000 pixels, over the limit"):
        make().load(Image.new("RGB", (1, 30_000)), "#4")


def test_a_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rgb(tmp_path / "image", (64, 64))
    size = path.stat().st_size
    monkeypatch.setattr(preprocess, "MAX_FILE_BYTES", size)
    assert make().load(path).shape == (64, 64, 3)
    monkeypatch.setattr(preprocess, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(
        ImageError, match=f"a file of {size:,} bytes, over the limit of {size - 1:,}"
    ):
        make().load(path)


def test_threads_leave_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    # a catch_warnings in each thread restores another thread's filters: a race, so force switches
    path = write_palette_with_alpha(tmp_path / "image", (90, 90))
    before = list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            arrays = list(pool.map(lambda _: make().load(path), range(200)))
    finally:
        sys.setswitchinterval(interval)
    assert list(warnings.filters) == before
    assert len({array.tobytes() for array in arrays}) == 1


def test_pillows_warnings_are_off_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_and_warn(*arguments: object, **options: object) -> Image.Image:
        warnings.warn_explicit("Pillow's", UserWarning, "Image.py", 1, module="PIL.Image")
        warnings.warn_explicit("another's", UserWarning, "other.py", 1, module="other")
        return Image.new("RGB", (64, 64))

    monkeypatch.setattr(Image, "open", open_and_warn)
    with pytest.warns(UserWarning, match="another") as seen:
        make().load(io.BytesIO(b""))
    assert [str(item.message) for item in seen] == ["another's"]
