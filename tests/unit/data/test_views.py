"""Strong views: a function of pixels and number, kept by the same cache."""

from __future__ import annotations

import colorsys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedapt.core.report import Reporter
from fedapt.data import views
from fedapt.data.domains import ImageSet, ImageTable
from fedapt.data.features import extract_features
from fedapt.data.views import StrongView, StrongViews, augment
from fedapt_runtime import Preprocessing
from fedapt_runtime.errors import ImageError

SIZE = 16
PLAIN = Preprocessing((SIZE, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
Pixels = NDArray[np.uint8]


def draw_pixels(seed: int = 0, height: int = SIZE, width: int = SIZE) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Encoder:
    """Features that tell every pixel: a fixed random projection. Counts what it encodes."""

    preprocessing = PLAIN
    width = 4

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint, self.n_images = fingerprint, 0
        self._matrix = np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, 4))

    def prepare(self) -> None:
        pass

    def encode(self, images: Pixels) -> NDArray[np.float32]:
        self.n_images += len(images)
        return (images.reshape(len(images), -1) @ self._matrix / 1e3).astype(np.float32)


def only(monkeypatch: pytest.MonkeyPatch, **chances: float) -> None:
    """These steps of the augmentation alone, each with this chance."""
    for name in ("FLIP", "JITTER", "GREY", "BLUR"):
        monkeypatch.setattr(views, f"_{name}", chances.get(name.lower(), 0.0))


# one view


def test_the_same_pixels_and_number_give_the_same_bytes() -> None:
    pixels = draw_pixels()
    before = pixels.copy()
    for view in range(8):
        first = augment(pixels, view)
        np.random.default_rng(1).random(3)
        assert np.array_equal(augment(pixels.copy(), view), first)
    assert np.array_equal(pixels, before)


def test_other_numbers_and_other_pixels_give_other_views() -> None:
    pixels = draw_pixels()
    found = {augment(pixels, view).tobytes() for view in range(50)}
    assert len(found) > 45  # a flip alone comes up again
    near = pixels.copy()
    near[0, 0, 0] ^= 1
    different = [
        float((augment(pixels, view) != augment(near, view)).mean()) > 0.5 for view in range(20)
    ]
    assert sum(different) > 10  # drawn anew, not the same steps for all images


@pytest.mark.parametrize("shape", [(16, 16), (24, 10), (1, 1)])
def test_a_view_is_an_rgb_image_of_the_same_size(shape: tuple[int, int]) -> None:
    for view in range(20):
        found = augment(draw_pixels(view, *shape), view)
        assert (found.dtype, found.shape) == (np.uint8, (*shape, 3))


def test_without_any_step_the_view_is_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    assert np.array_equal(augment(draw_pixels(), 3), draw_pixels())


def test_a_flip_is_from_left_to_right(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, flip=1.0)
    assert np.array_equal(augment(draw_pixels(), 3), draw_pixels()[:, ::-1])


def test_grey_has_three_equal_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, grey=1.0)
    found, pixels = augment(draw_pixels(), 3), draw_pixels()
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    for channel in range(3):
        assert np.abs(found[..., channel] - luma).max() < 1.01


def test_blur_smooths_and_keeps_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, blur=1.0)
    pixels = draw_pixels(height=64, width=64).astype(float)
    spreads = []
    for view in range(10):
        found = augment(draw_pixels(height=64, width=64), view).astype(float)
        assert abs(found.mean() - pixels.mean()) < 2
        spreads.append(found.std() / pixels.std())
    assert max(spreads) < 1.01
    assert min(spreads) < 0.4  # sigma up to 2
    assert max(spreads) - min(spreads) > 0.2  # of a drawn strength


def test_jitter_keeps_where_things_are_and_changes_their_colour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only(monkeypatch, jitter=1.0)
    pixels = np.full((16, 16, 3), (200, 90, 40), dtype=np.uint8)
    pixels[:, 8:] = (20, 120, 220)
    brightness, hues = [], []
    for view in range(60):
        found = augment(pixels, view)
        for half in (found[:, :8], found[:, 8:]):
            assert (half == half[0, 0]).all()  # nothing moves
        brightness.append(float(found.mean()) / float(pixels.mean()))
        hues.append(colorsys.rgb_to_hsv(*(found[0, 0] / 255.0))[0])
    assert min(brightness) < 0.5
    assert max(brightness) > 1.4
    hue = colorsys.rgb_to_hsv(200 / 255, 90 / 255, 40 / 255)[0]
    turns = np.abs((np.array(hues) - hue + 0.5) % 1 - 0.5)
    assert turns.max() > 0.1
    assert np.quantile(turns, 0.9) < 0.25  # 0.2 of the circle at most, but for what clips


def test_steps_come_as_often_as_they_should() -> None:
    n, grey, flipped = 400, 0, 0
    pixels = draw_pixels()
    pixels[:, :8] //= 8  # dark on the left
    for view in range(n):
        found = augment(pixels, view).astype(int)
        grey += bool((found == found[..., :1]).all())
        flipped += bool(found[:, :8].mean() > found[:, 8:].mean())
    assert 0.12 < grey / n < 0.28
    assert 0.42 < flipped / n < 0.58


# preprocessing


def test_a_view_comes_behind_the_preprocessing() -> None:
    image = Image.fromarray(draw_pixels(height=40, width=30))
    strong = StrongView(PLAIN.size, PLAIN.mean, PLAIN.std, view=2)
    expected = augment(PLAIN.image_to_array(image), 2)
    assert np.array_equal(strong.image_to_array(image), expected)
    assert not np.array_equal(expected, PLAIN.image_to_array(image))


def test_what_the_cache_is_keyed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [PLAIN.to_dict()]
    strong = [StrongView(PLAIN.size, PLAIN.mean, PLAIN.std, view=view) for view in (0, 1)]
    fields += [view.to_dict() for view in strong]
    monkeypatch.setattr(views, "_VERSION", 2)  # of another augmentation
    fields += [view.to_dict() for view in strong]
    assert all(a != b for i, a in enumerate(fields) for b in fields[:i])


# features of views


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{i}.png" for i in range(7)]
    for i, path in enumerate(found):
        Image.fromarray(draw_pixels(i)).save(path)
    return found


class Heard(Reporter):
    def __init__(self) -> None:
        self.tasks = set[str]()

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        self.tasks.add(f"{task}: {total}")


def make(
    paths: list[Path], rows: list[int], encoder: Encoder, reporter: Reporter | None = None
) -> tuple[ImageTable, StrongViews]:
    n = len(paths)
    table = ImageTable(tuple(paths), torch.zeros(n, 4), torch.zeros(n, dtype=torch.int64))
    found = StrongViews(table, torch.tensor(rows), lambda: encoder, reporter or Reporter())
    return table, found


def by_hand(encoder: Encoder, paths: list[Path], rows: list[int], view: int) -> Tensor:
    pixels = [augment(np.asarray(Image.open(paths[row])), view) for row in rows]
    return torch.from_numpy(encoder.encode(np.stack(pixels)))


def test_features_are_those_of_the_views_in_the_order_of_the_images(paths: list[Path]) -> None:
    encoder = Encoder("order")
    table, strong = make(paths, [5, 1, 4, 2], encoder)  # in any order, and not all of the table
    for rows in ([1, 2, 4, 5], [5, 2], [4]):
        for view in (0, 3):
            found = strong(ImageSet(table, torch.tensor(rows)), view)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, by_hand(encoder, paths, rows, view))


def test_a_view_is_computed_once_and_when_asked_for(paths: list[Path]) -> None:
    encoder, reporter = Encoder("once"), Heard()
    table, strong = make(paths, [0, 1, 2], encoder, reporter)
    assert encoder.n_images == 0
    first = strong(ImageSet(table, torch.tensor([0, 2])), 1)
    done = encoder.n_images
    assert done > 0
    assert "features of view 2: 3" in reporter.tasks  # people count from 1
    assert torch.equal(strong(ImageSet(table, torch.tensor([0, 2])), 1), first)
    assert encoder.n_images == done
    strong(ImageSet(table, torch.tensor([0])), 0)
    assert encoder.n_images > done


def test_the_cache_keeps_views_apart_from_images_and_from_each_other(paths: list[Path]) -> None:
    encoder = Encoder("apart")
    plain = extract_features(paths, encoder).values
    images = ImageSet(make(paths, list(range(7)), encoder)[0], torch.arange(7))
    found = [make(paths, list(range(7)), encoder)[1](images, view) for view in (0, 1)]
    again = Encoder("apart")  # of another run
    for view in (0, 1):
        assert torch.equal(make(paths, list(range(7)), again)[1](images, view), found[view])
    assert again.n_images == 0
    assert np.array_equal(extract_features(paths, again).values, plain)
    for a, b in ((found[0], found[1]), (found[0], torch.from_numpy(np.array(plain)))):
        assert float((a - b).abs().max()) > 1e-3
    other = Encoder("another tower")
    make(paths, list(range(7)), other)[1](images, 0)
    assert other.n_images > 0


def test_clients_ask_from_several_threads(paths: list[Path]) -> None:
    encoder = Encoder("threads")
    table, strong = make(paths, list(range(7)), encoder)
    barrier = threading.Barrier(4)

    def ask(row: int) -> Tensor:
        barrier.wait()
        return strong(ImageSet(table, torch.tensor([row])), 0)

    with ThreadPoolExecutor(4) as pool:
        found = torch.cat(list(pool.map(ask, range(4))))
    assert encoder.n_images == 32  # one batch of the tower, filled up
    torch.testing.assert_close(found, by_hand(encoder, paths, list(range(4)), 0))


def test_an_image_that_has_gone_is_an_error(paths: list[Path]) -> None:
    table, strong = make(paths, list(range(7)), Encoder("gone"))
    paths[3].unlink()
    with pytest.raises(ImageError, match=r"3\.png: found no such file"):
        strong(ImageSet(table, torch.tensor([0])), 0)
