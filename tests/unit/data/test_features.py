"""Image features: computed once per image, the same whatever else is computed beside it."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from fedapt.core.errors import FileError
from fedapt.core.report import Reporter
from fedapt.data import features as module
from fedapt.data.features import BATCH_SIZE, Features, extract_features
from fedapt_runtime import Preprocessing

SIDE = 8


class CountingEncoder:
    """The mean of each channel; keeps the shape of every batch that it was given."""

    def __init__(self, fingerprint: str = "counting", side: int = SIDE) -> None:
        self.preprocessing = Preprocessing((side, side), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.fingerprint = fingerprint
        self.width = 3
        self.batches: list[tuple[int, ...]] = []

    def prepare(self) -> None:
        pass

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert images.dtype == np.uint8
        self.batches.append(images.shape)
        return images.mean((1, 2)).astype(np.float32)


def paint(folder: Path, count: int) -> list[Path]:
    """`count` images of one colour each, so that the features are known: (i, 2 i, 100)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("RGB", (SIDE, SIDE), (i, 2 * i, 100)).save(path)
    return paths


def colours(*numbers: int) -> list[list[float]]:
    return [[i, 2 * i, 100] for i in numbers]


def stores(cache: Path) -> list[Path]:
    return sorted(cache.rglob("features.sqlite3"))


def count_features(cache: Path) -> int:
    (path,) = stores(cache)
    with closing(sqlite3.connect(path)) as database:
        (count,) = database.execute("SELECT count(*) FROM features").fetchone()
    return int(count)


def tables(cache: Path) -> list[Path]:
    return sorted(cache.rglob("tables/*.safetensors"))


def forget_tables(cache: Path) -> None:
    """So that what is known comes from the store."""
    for path in tables(cache):
        path.unlink()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_features_stand_in_the_order_of_the_paths(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 5)
    found = extract_features([paths[4], paths[0], paths[2]], CountingEncoder(), folder=cache)
    assert found.values.tolist() == colours(4, 0, 2)
    assert found.values.dtype == np.float32
    assert found.kept.tolist() == [0, 1, 2]
    assert found.errors == ()


def test_no_paths_give_no_features(cache: Path) -> None:
    encoder = CountingEncoder()
    found = extract_features([], encoder, folder=cache)
    assert found.values.shape == (0, 3)
    assert (encoder.batches, count_features(cache), tables(cache)) == ([], 0, [])


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (31, 1), (32, 1), (33, 2), (70, 3)])
def test_every_batch_is_filled_up_to_32(
    tmp_path: Path, cache: Path, count: int, batches: int
) -> None:
    encoder = CountingEncoder()
    found = extract_features(paint(tmp_path / "images", count), encoder, folder=cache)
    assert BATCH_SIZE == 32
    assert encoder.batches == [(32, SIDE, SIDE, 3)] * batches
    assert found.values.tolist() == colours(*range(count))


@pytest.mark.parametrize("from_table", [True, False])
def test_a_second_extraction_computes_nothing(
    tmp_path: Path, cache: Path, from_table: bool
) -> None:
    paths = paint(tmp_path / "images", 40)
    first = extract_features(paths, CountingEncoder(), folder=cache)
    assert len(tables(cache)) == 1
    if not from_table:
        forget_tables(cache)
    encoder = CountingEncoder()
    second = extract_features(paths, encoder, folder=cache)
    assert encoder.batches == []
    np.testing.assert_array_equal(second.values, first.values)


def test_only_what_is_new_is_computed(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 80)
    extract_features(paths[:40], CountingEncoder(), folder=cache)
    encoder = CountingEncoder()
    found = extract_features(paths, encoder, folder=cache)
    assert len(encoder.batches) == 2  # 40 more
    assert found.values.tolist() == colours(*range(80))


def test_a_moved_image_is_not_computed_again(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 3)
    extract_features(paths, CountingEncoder(), folder=cache)
    moved = shutil.move(paths[2], tmp_path / "elsewhere.png")
    encoder = CountingEncoder()
    assert extract_features([moved], encoder, folder=cache).values.tolist() == colours(2)
    assert encoder.batches == []


def test_changed_bytes_under_the_same_name_are_computed_again(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 3)
    extract_features(paths, CountingEncoder(), folder=cache)
    stat = paths[1].stat()
    Image.new("RGB", (SIDE, SIDE), (200, 201, 202)).save(paths[1])
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the date tells nothing
    encoder = CountingEncoder()
    found = extract_features(paths, encoder, folder=cache)
    assert found.values.tolist() == [*colours(0), [200, 201, 202], *colours(2)]
    assert len(encoder.batches) == 1


@pytest.mark.parametrize("other", [CountingEncoder("another"), CountingEncoder(side=4)])
def test_another_encoder_or_preprocessing_shares_nothing(
    tmp_path: Path, cache: Path, other: CountingEncoder
) -> None:
    paths = paint(tmp_path / "images", 3)
    extract_features(paths, CountingEncoder(), folder=cache)
    other.batches.clear()
    extract_features(paths, other, folder=cache)
    assert len(other.batches) == 1
    again = CountingEncoder()
    extract_features(paths, again, folder=cache)
    assert again.batches == []


@pytest.mark.parametrize("damage", ["truncated", "empty", "other bytes"])
def test_a_damaged_store_is_begun_again(tmp_path: Path, cache: Path, damage: str) -> None:
    paths = paint(tmp_path / "images", 3)
    extract_features(paths, CountingEncoder(), folder=cache)
    forget_tables(cache)
    (store,) = stores(cache)
    whole = store.read_bytes()
    damaged = {"truncated": whole[:50_000], "empty": b"", "other bytes": b"\xff" * len(whole)}
    store.write_bytes(damaged[damage])
    encoder = CountingEncoder()
    found = extract_features(paths, encoder, folder=cache)
    assert len(encoder.batches) == 1
    assert found.values.tolist() == colours(0, 1, 2)
    forget_tables(cache)
    again = CountingEncoder()
    extract_features(paths, again, folder=cache)
    assert again.batches == []


def test_an_image_that_cannot_be_read_is_named_and_left_out(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 3)
    paths[1].write_bytes(b"no image")
    encoder = CountingEncoder()
    found = extract_features(paths, encoder, folder=cache)
    assert found.values.tolist() == colours(0, 2)
    assert found.kept.tolist() == [0, 2]
    (error,) = found.errors
    assert error.where == str(paths[1])
    assert error.found == "not an image of a known format"
    # and it is not remembered: a repaired cache of errors would be one more thing to invalidate
    assert len(extract_features(paths, encoder, folder=cache).errors) == 1


def test_a_missing_file_is_named_and_left_out(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 2)
    absent = tmp_path / "absent.png"
    found = extract_features([absent, *paths], CountingEncoder(), folder=cache)
    assert [(e.where, e.found) for e in found.errors] == [(str(absent), "no such file")]
    assert found.kept.tolist() == [1, 2]


def test_nothing_but_broken_images_needs_no_tower(tmp_path: Path, cache: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]))
    encoder = CountingEncoder()
    found = extract_features(paths, encoder, folder=cache)
    assert [e.where for e in found.errors] == [str(path) for path in paths]
    assert found.values.shape == (0, 3)
    assert (encoder.batches, count_features(cache), tables(cache)) == ([], 0, [])


def test_broken_images_between_good_ones_shift_no_row(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 100)
    broken = set(range(0, 100, 3))
    for i in broken:
        paths[i].write_bytes(f"no image {i}".encode())
    found = extract_features(paths, CountingEncoder(), folder=cache)
    good = [i for i in range(100) if i not in broken]
    assert found.kept.tolist() == good
    assert found.values.tolist() == colours(*good)
    assert [e.where for e in found.errors] == [str(paths[i]) for i in sorted(broken)]


def test_equal_bytes_are_computed_once(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 2)
    copies = [Path(shutil.copy(paths[1], tmp_path / f"copy{i}.png")) for i in range(40)]
    encoder = CountingEncoder()
    found = extract_features([*copies, *paths], encoder, folder=cache)
    assert len(encoder.batches) == 1
    assert found.values.tolist() == colours(*[1] * 40, 0, 1)
    assert count_features(cache) == 2


def test_equal_broken_bytes_are_named_under_both_names(tmp_path: Path, cache: Path) -> None:
    paths = [*paint(tmp_path / "images", 1), tmp_path / "x.png", tmp_path / "y.png"]
    for path in paths[1:]:
        path.write_bytes(b"no image")
    found = extract_features(paths, CountingEncoder(), folder=cache)
    assert [error.where for error in found.errors] == [str(path) for path in paths[1:]]
    assert all(str(e).startswith(f"{e.where}: found not an image") for e in found.errors)
    assert found.kept.tolist() == [0]


@pytest.mark.parametrize("cached", [0, 1, 37, 70])
def test_neither_order_nor_cache_change_a_feature(tmp_path: Path, cache: Path, cached: int) -> None:
    paths = paint(tmp_path / "images", 70)
    order = random.Random(cached).sample(range(70), 70)
    if cached:
        extract_features([paths[i] for i in order[:cached]], CountingEncoder(), folder=cache)
    found = extract_features(paths, CountingEncoder(), folder=cache, workers=3)
    assert found.values.tolist() == colours(*range(70))


class Listener(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        self.told.append((task, done, total))


def test_what_is_done_is_told_up_to_the_end(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 5)
    extract_features(paths[:2], CountingEncoder(), folder=cache)
    listener = Listener()
    extract_features(
        [*paths, paths[4]], CountingEncoder(), folder=cache, task="views", reporter=listener
    )
    assert listener.told == [
        *[("image files", done, 6) for done in (0, 1, 2, 3, 4, 5, 6)],
        *[("views", done, 6) for done in (3, 4, 5, 6)],
    ]


def test_by_default_the_cache_is_fedapts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path / "named"))
    extract_features(paint(tmp_path / "images", 1), CountingEncoder())
    (store,), (table,) = stores(tmp_path), tables(tmp_path)
    assert store.is_relative_to(tmp_path / "named" / "features")
    assert table.parent == store.parent / "tables"


def test_two_runs_write_the_same_tables(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 3)
    extract_features(paths, CountingEncoder(), folder=cache)
    extract_features(paths, CountingEncoder(), folder=tmp_path / "other")
    assert len(tables(cache)) == 1
    assert [path.relative_to(cache) for path in tables(cache)] == [
        path.relative_to(tmp_path / "other") for path in tables(tmp_path / "other")
    ]
    assert tables(cache)[0].read_bytes() == tables(tmp_path / "other")[0].read_bytes()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, cache: Path) -> None:
    cache.write_text("in the way")
    paths = paint(tmp_path / "images", 1)
    with pytest.raises(FileError, match="found Not a directory; expected a cache that can be"):
        extract_features(paths, CountingEncoder(), folder=cache)


def test_features_are_plain_values(tmp_path: Path, cache: Path) -> None:
    found = extract_features(paint(tmp_path / "images", 2), CountingEncoder(), folder=cache)
    assert isinstance(found, Features)
    found.values[0] = 0  # the caller's own copy
    again = extract_features(paint(tmp_path / "images", 2), CountingEncoder(), folder=cache)
    assert again.values.tolist() == colours(0, 1)


# the table of a whole list


def test_a_list_of_images_is_mapped_from_its_own_table(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 5)
    found = [extract_features(paths, CountingEncoder(), folder=cache) for _ in range(2)]
    (table,) = tables(cache)
    assert load_file(str(table))["features"].tolist() == colours(*range(5))
    for one in found:
        assert isinstance(one.values, np.memmap)
        assert Path(one.values.filename) == table
        assert (one.values.dtype, one.values.shape) == (np.float32, (5, 3))
        assert one.values.tolist() == colours(*range(5))
        assert (one.kept.tolist(), one.errors) == ([0, 1, 2, 3, 4], ())


def test_from_a_table_neither_features_nor_images_are_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paint(tmp_path / "images", 5)
    extract_features(paths, CountingEncoder(), folder=cache)

    def refuse(*_: object) -> None:
        raise AssertionError("the table has it all")

    monkeypatch.setattr(module.FeatureStore, "read", refuse)
    monkeypatch.setattr(module, "decode_ahead", refuse)
    listener = Listener()
    found = extract_features(paths, CountingEncoder(), folder=cache, reporter=listener)
    assert found.values.tolist() == colours(*range(5))
    assert listener.told[-1] == ("image features", 5, 5)


def test_every_list_and_order_has_a_table_of_its_own(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 4)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2], [1, 1]):
        for _ in range(2):
            found = extract_features([paths[i] for i in order], CountingEncoder(), folder=cache)
            assert found.values.tolist() == colours(*order)
    assert len(tables(cache)) == 4
    assert count_features(cache) == 4


def test_a_list_with_errors_has_no_table(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 3)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(b"no image")
    for _ in range(2):
        found = extract_features(paths, CountingEncoder(), folder=cache)
        assert [error.where for error in found.errors] == [str(paths[1])]
    assert tables(cache) == []
    paths[1].write_bytes(whole)
    found = extract_features(paths, CountingEncoder(), folder=cache)
    assert found.values.tolist() == colours(0, 1, 2)
    assert len(tables(cache)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        "empty",
        "a header alone",
        "other bytes",
        "one bit",
        "no metadata",
        "a header that is a list",
        "a header without end",
        "fewer rows",
        "more rows",
    ],
)
def test_a_damaged_table_is_made_again_from_the_store(
    tmp_path: Path, cache: Path, damage: str
) -> None:
    paths = paint(tmp_path / "images", 4)
    extract_features(paths[:3], CountingEncoder(), folder=cache)
    (table,) = tables(cache)
    whole = table.read_bytes()
    others = paths[:2] if damage == "fewer rows" else paths
    extract_features(others, CountingEncoder(), folder=cache)
    (other,) = (path for path in tables(cache) if path != table)
    end = 8 + int.from_bytes(whole[:8], "little")
    damaged = {
        "truncated": whole[:-1],
        "empty": b"",
        "a header alone": whole[:end],
        "other bytes": b"\xff" * len(whole),
        "one bit": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "no metadata": whole.replace(b'"__metadata__"', b'"__metadatum_"'),
        "a header that is a list": (2).to_bytes(8, "little") + b"[]" + whole[end:],
        "a header without end": (1 << 63).to_bytes(8, "little") + whole[8:],
        "fewer rows": other.read_bytes(),
        "more rows": other.read_bytes(),
    }
    assert damaged[damage] != whole
    table.write_bytes(damaged[damage])
    encoder = CountingEncoder()
    found = extract_features(paths[:3], encoder, folder=cache)
    assert found.values.tolist() == colours(0, 1, 2)
    assert encoder.batches == []
    assert table.read_bytes() == whole


def test_a_table_that_cannot_be_written_is_done_without(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 3)
    extract_features(paths, CountingEncoder(), folder=cache)
    folder = tables(cache)[0].parent
    shutil.rmtree(folder)
    folder.write_text("a file in the place of the folder")
    for _ in range(2):
        encoder = CountingEncoder()
        found = extract_features(paths, encoder, folder=cache)
        assert found.values.tolist() == colours(0, 1, 2)
        assert encoder.batches == []


def test_writing_to_mapped_values_changes_no_file(tmp_path: Path, cache: Path) -> None:
    paths = paint(tmp_path / "images", 2)
    extract_features(paths, CountingEncoder(), folder=cache)
    (table,) = tables(cache)
    before = table.read_bytes()
    found = extract_features(paths, CountingEncoder(), folder=cache)
    found.values[:] = 7
    del found
    assert table.read_bytes() == before
