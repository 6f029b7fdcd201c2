"""Fixed point by hand, its error, and the room that the sum has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fedapt.core.config import read_config
from fedapt.core.errors import FederationError
from fedapt.federation.flower.secure.encoding import MAX_IMAGES, Encoding, count_words
from fedapt.training.client import ClientUpdate
from fedapt.training.methods import Learned

START: Learned = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([[-2.0]])}


def update(a: list[float], b: float, images: int = 1, loss: float = 0.0) -> ClientUpdate:
    return ClientUpdate(0, {"a": torch.tensor(a), "b": torch.tensor([[b]])}, images, loss)


def test_words_by_hand() -> None:
    # 4 clients x 16 = 2^6, so 62 - 6 bits; loss: 4 x 2^24 images x 2^10, so 62 - 36
    encoding = Encoding(4, False, 16.0)
    assert (encoding.fraction_bits, encoding.loss_bits) == (56, 26)
    words = encoding.encode(update([1.5, -0.25], -2.0, images=3, loss=0.5), START)
    expected = [3, 3 << 25, 0, 1 << 55, (1 << 64) - (1 << 54), 0]
    assert words.tolist() == expected
    assert len(words) == count_words(START) == 6

    # weighted: 24 bits more, and a value counts three times
    weighted = Encoding(4, True, 16.0)
    assert weighted.fraction_bits == 32
    words = weighted.encode(update([1.5, -0.25], -2.0, images=3, loss=0.5), START)
    assert words.tolist()[3:] == [3 << 31, (1 << 64) - (3 << 30), 0]


def test_a_sum_comes_back() -> None:
    one, other = update([1.5, 1.0], -2.0, 1, 0.5), update([0.5, 0.25], 1.0, 3, 2.5)
    for weighted, a, b in ((False, [1.0, 0.625], -0.5), (True, [0.75, 0.4375], 0.25)):
        encoding = Encoding(4, weighted, 16.0)
        total = encoding.encode(one, START) + encoding.encode(other, START)
        found = encoding.decode(total, 2, START)
        assert found.learned["a"].tolist() == a
        assert found.learned["b"].tolist() == [[b]]
        assert found.learned["b"].dtype == torch.float32
        assert (found.images, found.loss, found.clipped) == (4, 2.0, 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_of_the_mean(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    start = {"x": torch.zeros(1000)}
    encoding = Encoding(7, weighted, 16.0)
    values = rng.normal(0, 0.01, (7, 1000)).astype(np.float32)
    images = rng.integers(1, 5000, 7)
    total = sum(
        encoding.encode(
            ClientUpdate(i, {"x": torch.from_numpy(values[i])}, int(images[i]), 1), start
        )
        for i in range(7)
    )
    weights = images if weighted else np.ones(7)
    mean = (values.astype(np.float64) * weights[:, None]).sum(0) / weights.sum()
    # before it is rounded to float32
    words = np.asarray(total).view(np.int64)[3:].astype(np.float64)
    found = np.ldexp(words, -encoding.fraction_bits) / weights.sum()
    # by hand: 7 x 16 is below 2^7, 7 x 16 x 2^24 below 2^31
    bound = 7 * 2.0**-32 / images.sum() if weighted else 2.0**-56
    # the sum in this test rounds in float64
    assert abs(found - mean).max() <= bound + 1e-17
    assert weighted == bool(abs(found - mean).max() > bound / 100)


@pytest.mark.parametrize("n", [3, 4, 7, 1000, 100_000])
def test_the_sum_cannot_overflow(n: int) -> None:
    for weighted, largest in itertools.product((False, True), (1e-6, 0.3, 16.0, 1e6)):
        encoding = Encoding(n, weighted, largest)
        extreme = update([1e30, -1e30], -2.0 + largest, images=MAX_IMAGES, loss=1e30)
        words = [int(word) for word in encoding.encode(extreme, START).view(np.int64)]
        assert all(abs(word) * n <= 1 << 62 for word in words)
        assert max(map(abs, words[3:])) * n > 1 << 60  # and none of the room is wasted


def test_what_is_out_of_range_is_cut_off_and_counted() -> None:
    encoding = Encoding(3, False, 0.5)
    extreme = update([9.0, -9.0], -1.75, images=2, loss=-1e9)
    found = encoding.decode(encoding.encode(extreme, START), 1, START)
    assert found.learned["a"].tolist() == [1.5, -0.5]
    assert found.learned["b"].tolist() == [[-1.75]]
    assert (found.clipped, found.images, found.loss) == (2, 2, -1024.0)


def test_a_sum_that_is_none() -> None:
    encoding = Encoding(3, False, 0.5)
    for images, clipped in ((0, 0), (-1, 0), (2 * MAX_IMAGES + 1, 0), (1, -1), (1, 7)):
        total = np.array([images, 0, clipped, 0, 0, 0], np.int64).view(np.uint64)
        with pytest.raises(ValueError, match=f"a sum of {images} images, {clipped} values"):
            encoding.decode(total, 2, START)


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (update([float("nan"), 0.0], -2.0), "a with NaN or infinity"),
        (update([0.0, 0.0], float("-inf")), "b with NaN or infinity"),
        (update([0.0, 0.0], -2.0, loss=float("nan")), "a loss with NaN or infinity"),
        (update([0.0, 0.0], -2.0, images=MAX_IMAGES + 1), "16,777,217 images"),
        (update([0.0, 0.0], -2.0, images=0), "0 images"),
    ],
)
def test_what_would_spoil_the_sum_is_refused(broken: ClientUpdate, found: str) -> None:
    with pytest.raises(FederationError) as caught:
        Encoding(4, False, 16.0).encode(broken, START)
    assert (caught.value.where, caught.value.found) == ("client 0", found)


def test_settings() -> None:
    config = read_config(None, ["train.weighting=samples", "federation.secure_range=2.0"])
    assert Encoding.of(config, 5) == Encoding(5, True, 2.0)
    assert Encoding.of(read_config(None), 5) == Encoding(5, False, 16.0)
