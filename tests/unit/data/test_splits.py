"""Which images test: a share of every class, the same ones for ever, or DomainNet's own lists."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from fedapt.core.errors import DataError
from fedapt.data.folders import ImageFolders, Sample, scan_folders
from fedapt.data.splits import Split, split_folders, split_samples


def make(sizes: dict[str, dict[str, int]], root: Path = Path("root")) -> ImageFolders:
    """Folders of so many images of each class; nothing is on the disk."""
    classes = tuple(sorted({name for domain in sizes.values() for name in domain}))
    samples = {
        domain: tuple(
            Sample(f"{domain}/{name}/{i:04}.png", classes.index(name))
            for name in classes
            for i in range(counts.get(name, 0))
        )
        for domain, counts in sizes.items()
    }
    return ImageFolders(root, tuple(sorted(sizes)), classes, classes, samples)


def per_class(samples: tuple[Sample, ...]) -> dict[int, int]:
    return dict(Counter(sample.label for sample in samples))


def test_every_class_of_every_domain_gives_its_share() -> None:
    folders = make({"a": {"x": 50, "y": 10}, "b": {"x": 5, "y": 100}})
    split = split_folders(folders, 0.2, seed=0)
    assert per_class(split.test["a"]) == {0: 10, 1: 2}
    assert per_class(split.train["a"]) == {0: 40, 1: 8}
    assert per_class(split.test["b"]) == {0: 1, 1: 20}
    assert per_class(split.train["b"]) == {0: 4, 1: 80}


@pytest.mark.parametrize(("n", "expected"), [(1, 0), (2, 0), (3, 1), (7, 1), (8, 2), (13, 3)])
def test_a_share_is_rounded(n: int, expected: int) -> None:
    train, test = split_samples(make({"a": {"x": n}}).samples["a"], 0.2, seed=0)
    assert (len(train), len(test)) == (n - expected, expected)


def test_train_and_test_are_the_whole_in_its_order() -> None:
    samples = make({"a": {"x": 30, "y": 30}}).samples["a"]
    train, test = split_samples(samples, 0.3, seed=4)
    assert set(train).isdisjoint(test)
    assert tuple(sorted((*train, *test), key=samples.index)) == samples
    assert list(train) == sorted(train, key=samples.index)
    assert list(test) == sorted(test, key=samples.index)


def test_the_split_never_changes() -> None:
    samples = make({"a": {"x": 8}}).samples["a"]
    _, test = split_samples(samples, 0.25, seed=0)
    # the two smallest of sha256("0/a/x/0000.png") ... sha256("0/a/x/0007.png")
    assert [sample.path for sample in test] == ["a/x/0006.png", "a/x/0007.png"]


def test_another_seed_draws_others_and_the_same_seed_the_same() -> None:
    samples = make({"a": {"x": 100}}).samples["a"]
    assert split_samples(samples, 0.2, seed=1) == split_samples(samples, 0.2, seed=1)
    assert split_samples(samples, 0.2, seed=1)[1] != split_samples(samples, 0.2, seed=2)[1]


def test_the_order_of_a_listing_decides_nothing() -> None:
    samples = make({"a": {"x": 40, "y": 40}}).samples["a"]
    shuffled = list(samples)
    random.Random(0).shuffle(shuffled)
    assert set(split_samples(tuple(shuffled), 0.2, 0)[1]) == set(split_samples(samples, 0.2, 0)[1])


def test_an_added_image_moves_at_most_one_other() -> None:
    samples = make({"a": {"x": 100, "y": 50}}).samples["a"]
    before = set(split_samples(samples, 0.2, seed=0)[1])
    moved = []
    for i in range(20):
        added = Sample(f"a/x/new{i}.png", 0)
        after = set(split_samples((*samples, added), 0.2, seed=0)[1])
        moved.append(len(before ^ (after - {added})))
    assert max(moved) <= 1
    assert 0 in moved


def test_a_share_of_nothing_leaves_no_test_images() -> None:
    split = split_folders(make({"a": {"x": 10}}), 0.0, seed=0)
    assert split.test["a"] == ()
    assert len(split.train["a"]) == 10


def test_a_domain_without_training_images_is_refused() -> None:
    with pytest.raises(DataError, match="domain b: found no training images; expected at least"):
        split_folders(make({"a": {"x": 10}, "b": {"x": 1}}), 0.9, seed=0)


# validation images, which choose the round


def test_validation_is_a_share_of_what_does_not_test() -> None:
    folders = make({"a": {"x": 50, "y": 10}, "b": {"x": 5, "y": 100}})
    split = split_folders(folders, 0.2, seed=0, validation_fraction=0.25)
    assert per_class(split.test["a"]) == {0: 10, 1: 2}
    assert per_class(split.validation["a"]) == {0: 10, 1: 2}
    assert per_class(split.train["a"]) == {0: 30, 1: 6}
    assert per_class(split.validation["b"]) == {0: 1, 1: 20}
    assert per_class(split.train["b"]) == {0: 3, 1: 60}


def test_validation_leaves_the_test_images_as_they_are() -> None:
    folders = make({"a": {"x": 40, "y": 40}})
    plain = split_folders(folders, 0.2, seed=3)
    split = split_folders(folders, 0.2, seed=3, validation_fraction=0.3)
    assert split.test == plain.test
    parts = (split.train["a"], split.validation["a"])
    assert set(parts[0]).isdisjoint(parts[1])
    assert tuple(sorted((*parts[0], *parts[1]), key=folders.samples["a"].index)) == plain.train["a"]
    for part in parts:
        assert list(part) == sorted(part, key=folders.samples["a"].index)


def test_by_default_nothing_validates() -> None:
    split = split_folders(make({"a": {"x": 10}, "b": {"x": 10}}), 0.2, seed=0)
    assert split.validation == {"a": (), "b": ()}


def test_validation_never_changes_and_follows_from_the_seed() -> None:
    folders = make({"a": {"x": 8}})
    split = split_folders(folders, 0.25, seed=0, validation_fraction=0.34)
    # the third and fourth of sha256("0/a/x/0000.png") ... sha256("0/a/x/0007.png")
    assert [s.path for s in split.test["a"]] == ["a/x/0006.png", "a/x/0007.png"]
    assert [s.path for s in split.validation["a"]] == ["a/x/0003.png", "a/x/0004.png"]
    many = make({"a": {"x": 100}})
    first, again, other = (
        split_folders(many, 0.2, seed, validation_fraction=0.2).validation for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_where_validation_takes_every_image_training_is_refused() -> None:
    folders = make({"a": {"x": 100}, "b": {"x": 2}})
    with pytest.raises(DataError, match="domain b: found no training images; expected at least"):
        split_folders(folders, 0.0, seed=0, validation_fraction=0.9)


# few shots


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_every_class_of_every_domain_has_so_many_shots(shots: int) -> None:
    folders = make({"a": {"x": 50, "y": 5}, "b": {"x": 8, "y": 9}})
    split = split_folders(folders, 0.2, seed=0, shots=shots)
    for domain in ("a", "b"):
        assert per_class(split.train[domain]) == {0: shots, 1: shots}
    assert split.test == split_folders(folders, 0.2, seed=0).test


def test_more_shots_keep_the_fewer_and_validation_takes_none_of_them() -> None:
    folders = make({"a": {"x": 50, "y": 50}})
    everything = split_folders(folders, 0.2, seed=0, validation_fraction=0.2)
    taken: set[Sample] = set()
    for shots in (1, 2, 8, 16):
        split = split_folders(folders, 0.2, seed=0, validation_fraction=0.2, shots=shots)
        assert split.validation == everything.validation
        assert split.test == everything.test
        assert taken < set(split.train["a"]) < set(everything.train["a"])
        assert list(split.train["a"]) == sorted(split.train["a"], key=folders.samples["a"].index)
        taken = set(split.train["a"])
        plain = split_folders(folders, 0.2, seed=0, shots=shots)
        assert plain.train == split.train


def test_another_seed_takes_other_shots() -> None:
    folders = make({"a": {"x": 100}})
    drawn = [split_folders(folders, 0.2, seed, shots=5).train["a"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_as_many_shots_as_there_are_images_are_all_of_them() -> None:
    folders = make({"a": {"x": 10, "y": 10}})
    assert split_folders(folders, 0.2, seed=0, shots=8) == split_folders(folders, 0.2, seed=0)


def test_more_shots_than_a_class_has_are_refused() -> None:
    folders = make({"a": {"x": 50, "y": 50}, "b": {"x": 50, "y": 10}})
    with pytest.raises(
        DataError,
        match=r"data\.shots = 9: found 8 training images in b/y; expected at least 9 in every "
        r"class of every domain\. To do: lower data\.shots, or add images",
    ) as caught:
        split_folders(folders, 0.2, seed=0, shots=9)
    assert caught.value.exit_code == 4
    with pytest.raises(DataError, match="found 6 training images in b/y; expected at least 8"):
        split_folders(folders, 0.2, seed=0, validation_fraction=0.25, shots=8)


def test_a_class_that_a_domain_lacks_needs_no_shots() -> None:
    split = split_folders(make({"a": {"x": 10, "y": 10}, "b": {"x": 10}}), 0.2, seed=0, shots=2)
    assert per_class(split.train["b"]) == {0: 2}


# DomainNet's lists


def listed(root: Path, train: str, test: str, names: tuple[str, ...] = ("1", "2", "3")) -> Split:
    for name in names:
        path = root / "a" / "red square" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "a_train.txt").write_text(train, "utf-8")
    (root / "a_test.txt").write_text(test, "utf-8")
    return split_folders(scan_folders(root), 0.2, seed=0)


def test_the_lists_are_used_in_their_order(tmp_path: Path) -> None:
    split = listed(
        tmp_path, "a/red square/3.png 0\na/red square/1.png 0\n", "a/red square/2.png 0\n"
    )
    assert [s.path for s in split.train["a"]] == ["a/red square/3.png", "a/red square/1.png"]
    assert [s.path for s in split.test["a"]] == ["a/red square/2.png"]


def test_an_image_that_no_list_names_is_left_out(tmp_path: Path) -> None:
    split = listed(tmp_path, "a/red square/3.png 0\n", "a/red square/2.png 0")
    assert split.train["a"] == (Sample("a/red square/3.png", 0),)
    assert split.test["a"] == (Sample("a/red square/2.png", 0),)


def test_empty_lines_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    split = listed(tmp_path, "\r\n\r\na/red square/3.png 0\r\n \r\n", "\n")
    assert split.train["a"] == (Sample("a/red square/3.png", 0),)
    assert split.test["a"] == ()


def test_the_class_folder_gives_the_label(tmp_path: Path) -> None:
    # a list's numbers are DomainNet's, which differ where only some classes are there
    split = listed(tmp_path, "a/red square/1.png 217\n", "")
    assert split.train["a"] == (Sample("a/red square/1.png", 0),)


def test_a_name_may_hold_spaces_and_more(tmp_path: Path) -> None:
    names = ("two words", "ünï ☃", "x 1")
    lines = [f"a/red square/{name}.png 0\n" for name in names]
    split = listed(tmp_path, "".join(lines[:2]), lines[2], names)
    assert [s.path for s in split.train["a"]] == [f"a/red square/{name}.png" for name in names[:2]]
    assert [s.path for s in split.test["a"]] == ["a/red square/x 1.png"]


@pytest.mark.parametrize(
    "name",
    [
        "a/red square/9.png",
        "a/red square/../red square/1.png",
        "../a/red square/1.png",
        "b/red square/1.png",
        "/etc/passwd",
        "a\\red square\\1.png",
    ],
)
def test_a_name_that_is_no_image_of_the_domain_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="expected an image below ") as caught:
        listed(tmp_path, f"a/red square/1.png 0\n\n{name} 0\n", "")
    assert caught.value.where == f"{tmp_path / 'a_train.txt'}, line 3"
    assert caught.value.found == repr(name)
    assert caught.value.expected == f"an image below {tmp_path / 'a'}"


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    listed(tmp_path, "a/red square/1.png 0\n", "")
    (tmp_path / "a_test.txt").write_bytes(b"a/red square/\xff\xfe.png 0\n")
    with pytest.raises(DataError, match=r"a_test\.txt: found 'utf-8' codec .*expected a text file"):
        split_folders(scan_folders(tmp_path), 0.2, seed=0)


def test_an_image_that_trains_and_tests_is_refused(tmp_path: Path) -> None:
    both = "a/red square/2.png 0\n"
    with pytest.raises(DataError, match=r"'a/red square/2\.png', which is a training image too"):
        listed(tmp_path, both + "a/red square/1.png 0\n", "a/red square/3.png 0\n" + both)


def test_lists_without_a_training_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="domain a: found no training images"):
        listed(tmp_path, "", "a/red square/2.png 0\n")


@pytest.mark.parametrize(("there", "missing"), [("train", "test"), ("test", "train")])
def test_one_list_alone_is_refused(tmp_path: Path, there: str, missing: str) -> None:
    listed(tmp_path, "a/red square/1.png 0\n", "")
    (tmp_path / f"a_{missing}.txt").unlink()
    text = (
        rf"a_{there}\.txt: found no a_{missing}\.txt beside it; expected both split files, or none"
    )
    with pytest.raises(DataError, match=text):
        split_folders(scan_folders(tmp_path), 0.4, seed=0)
    (tmp_path / f"a_{there}.txt").unlink()
    split = split_folders(scan_folders(tmp_path), 0.4, seed=0)
    assert (len(split.train["a"]), len(split.test["a"])) == (2, 1)


def test_validation_and_shots_are_taken_from_the_training_list(tmp_path: Path) -> None:
    names = tuple(str(i) for i in range(10))
    lines = [f"a/red square/{name}.png 0\n" for name in names]
    listed(tmp_path, "".join(lines[:8][::-1]), "".join(lines[8:]), names)
    folders = scan_folders(tmp_path)
    split = split_folders(folders, 0.9, seed=0, validation_fraction=0.25, shots=3)
    assert [s.path for s in split.test["a"]] == [line.removesuffix(" 0\n") for line in lines[8:]]
    assert (len(split.validation["a"]), len(split.train["a"])) == (2, 3)
    order = [line.removesuffix(" 0\n") for line in lines[:8][::-1]]
    for part in (split.validation["a"], split.train["a"]):
        assert [s.path for s in part] == sorted((s.path for s in part), key=order.index)
    assert set(split.validation["a"]).isdisjoint(split.train["a"])


def test_each_domain_may_have_lists_or_not(tmp_path: Path) -> None:
    (tmp_path / "b" / "red square").mkdir(parents=True)
    for i in range(10):
        (tmp_path / "b" / "red square" / f"{i}.png").touch()
    split = listed(tmp_path, "a/red square/1.png 0\n", "a/red square/2.png 0\n")
    assert [len(split.train[d]) for d in ("a", "b")] == [1, 8]
    assert [len(split.test[d]) for d in ("a", "b")] == [1, 2]
