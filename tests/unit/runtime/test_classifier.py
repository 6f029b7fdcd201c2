"""The classifier over a backend with logits computed by hand, and over a real ONNX file."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedapt_runtime import Classifier, Prediction, Preprocessing
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.errors import InputError
from fedapt_runtime.pipeline import Decoded, decode_one
from fedapt_runtime.prediction import softmax
from tests.support.manifests import make_manifest

PREPROCESSING = Preprocessing((2, 2), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# colour of a plain image -> class probabilities and domain weights; logits are ln p + a constant
CAT, DOG, EEL, EVEN, BROKEN_LOGITS, BROKEN_WEIGHTS = 10, 20, 30, 40, 250, 251
TABLE = {
    CAT: ((0.5, 0.3, 0.2), (0.25, 0.75)),
    DOG: ((0.1, 0.7, 0.2), (0.9, 0.1)),
    EEL: ((0.2, 0.2, 0.6), (0.5, 0.5)),
    EVEN: ((0.4, 0.2, 0.4), (1.0, 0.0)),
}


class FakeBackend:
    """Looks the first pixel up in `TABLE`."""

    description = "a fake"
    name, compute = "onnxruntime", "fp32"
    in_flight, default_batch, task_size = 2, 32, 0

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.manifest = make_manifest(("cat", "dog", "eel"), ("day", "night"))

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (2, 2, 3)
        self.batches.append(len(images))
        logits, weights = [], []
        for colour in images[:, 0, 0, 0].tolist():
            if colour == BROKEN_LOGITS:
                logits.append([math.nan, 0.0, 0.0])
                weights.append([0.5, 0.5])
            elif colour == BROKEN_WEIGHTS:
                logits.append([1.0, 0.0, 0.0])
                weights.append([math.nan, 0.5])
            else:
                p, w = TABLE[colour]
                logits.append([math.log(value) + 3.0 for value in p])
                weights.append(list(w))
        rows = np.array(logits, np.float32)
        return Outputs(rows, np.array(weights, np.float32), rows)


def plain(colour: int) -> NDArray[np.uint8]:
    return np.full((3, 4, 3), colour, np.uint8)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def classifier(backend: FakeBackend) -> Classifier:
    return Classifier(backend)


def test_one_prediction_by_hand(classifier: Classifier) -> None:
    (found,) = classifier([plain(CAT)])
    assert (found.path, found.label, found.routed_to, found.error) == ("#0", "cat", "night", None)
    assert found.score == pytest.approx(0.5, abs=1e-6)
    assert [name for name, _ in found.top_k] == ["cat", "dog", "eel"]
    assert [p for _, p in found.top_k] == pytest.approx([0.5, 0.3, 0.2], abs=1e-6)
    assert found.domain_weights == {"day": 0.25, "night": 0.75}


@pytest.mark.parametrize(
    ("top_k", "names"),
    [(1, ["eel"]), (2, ["eel", "cat"]), (3, ["eel", "cat", "dog"]), (9, ["eel", "cat", "dog"])],
)
def test_top_k_is_best_first_and_ties_keep_the_order_of_classes(
    classifier: Classifier, top_k: int, names: list[str]
) -> None:
    (found,) = classifier([plain(EEL)], top_k=top_k)
    assert [name for name, _ in found.top_k] == names
    assert found.label == "eel"


def test_a_tie_for_the_first_place_goes_to_the_first_class(classifier: Classifier) -> None:
    (found,) = classifier([plain(EVEN)])
    assert [name for name, _ in found.top_k] == ["cat", "eel", "dog"]
    assert (found.label, found.routed_to) == ("cat", "day")


def test_softmax_by_hand() -> None:
    # e^0 : e^ln3 = 1 : 3, and a constant changes nothing, however large
    logits = np.array([[0.0, math.log(3)], [5000.0, 5000.0 + math.log(3)]], np.float32)
    found = softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.25, 0.75], [0.25, 0.75]], atol=1e-4)


@pytest.mark.parametrize("row", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_softmax_of_what_is_no_number_is_nan_without_a_warning(row: list[float]) -> None:
    assert np.isnan(softmax(np.array([row], np.float32))).any()


def test_to_dict_has_plain_values() -> None:
    prediction = Prediction("a.png", "cat", 0.5, (("cat", 0.5),), "day", {"day": 1.0})
    assert prediction.to_dict() == {
        "path": "a.png",
        "label": "cat",
        "score": 0.5,
        "top_k": (("cat", 0.5),),
        "routed_to": "day",
        "domain_weights": {"day": 1.0},
        "error": None,
    }


def write_files(folder: Path) -> list[str]:
    """cat, not an image, dog, missing, empty, eel, cat."""
    paths = [folder / f"{i}.png" for i in range(7)]
    for path, colour in zip(paths, (CAT, 0, DOG, 0, 0, EEL, CAT), strict=True):
        if colour:
            Image.fromarray(plain(colour)).save(path)
    paths[1].write_text("not an image")
    paths[4].write_bytes(b"")
    return [str(path) for path in paths]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_bad_files_keep_their_places(
    classifier: Classifier, backend: FakeBackend, tmp_path: Path, batch_size: int
) -> None:
    paths = write_files(tmp_path)
    found = classifier(paths, batch_size=batch_size)
    assert [p.path for p in found] == paths
    assert [p.label for p in found] == ["cat", None, "dog", None, None, "eel", "cat"]
    texts = [p.error for p in found]
    assert texts[0] is texts[2] is texts[5] is texts[6] is None
    assert f"{paths[1]}: found not an image of a known format; expected" in str(texts[1])
    assert f"{paths[3]}: found no such file; expected" in str(texts[3])
    assert f"{paths[4]}: found an empty file; expected" in str(texts[4])
    for bad in (found[1], found[3], found[4]):
        assert (bad.score, bad.top_k, bad.routed_to, bad.domain_weights) == (None, (), None, {})
    assert sum(backend.batches) == 4
    # how many of each batch's files are images
    readable = {1: [1, 1, 1, 1], 2: [1, 1, 1, 1], 3: [2, 1, 1], 100: [4]}
    assert sorted(backend.batches) == sorted(readable[batch_size])


def test_only_bad_files_never_reach_the_graph(
    classifier: Classifier, backend: FakeBackend, tmp_path: Path
) -> None:
    found = classifier([tmp_path / "a.png", tmp_path / "b.png"])
    assert [p.label for p in found] == [None, None]
    assert backend.batches == []


def test_no_images_give_no_predictions(classifier: Classifier) -> None:
    assert classifier([]) == []


def test_one_path_is_one_image(classifier: Classifier, tmp_path: Path) -> None:
    path = write_files(tmp_path)[0]
    for one in (path, Path(path)):
        assert [(p.path, p.label) for p in classifier(one)] == [(path, "cat")]


def test_arrays_and_paths_are_the_same(classifier: Classifier, tmp_path: Path) -> None:
    paths = [write_files(tmp_path)[i] for i in (0, 2, 5)]
    of_paths = classifier(paths)
    of_arrays = classifier([plain(CAT), plain(DOG), plain(EEL)])
    assert [p.path for p in of_arrays] == ["#0", "#1", "#2"]
    for a, b in zip(of_paths, of_arrays, strict=True):
        assert a.to_dict() | {"path": ""} == b.to_dict() | {"path": ""}


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), r"an array of float32 \[4, 4, 3\]"),
        (np.zeros((4, 4, 3), np.int64), r"an array of int64 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"an array of uint8 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"an array of uint8 \[4, 4, 4\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"an array of uint8 \[1, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"an array of uint8 \[0, 4, 3\]"),
    ],
    ids=["float", "int", "2-D", "4 channels", "4-D", "empty"],
)
def test_wrong_arrays_are_refused(
    classifier: Classifier, array: NDArray[np.generic], text: str
) -> None:
    with pytest.raises(InputError, match=f"image #1: found {text}; expected uint8 RGB"):
        classifier([plain(CAT), array])


def test_an_array_that_would_grow_beyond_the_limit_is_a_row(classifier: Classifier) -> None:
    # the shorter side becomes 2: 1 x 30 000 000 becomes 2 x 60 000 000 pixels
    sliver = np.zeros((1, 30_000_000, 3), np.uint8)
    bad, good = classifier([sliver, plain(DOG)])
    assert "#0: found 30000000 x 1 pixels, over the limit of 100,000,000" in str(bad.error)
    assert good.label == "dog"


@pytest.mark.parametrize(
    ("name", "number", "minimum"),
    [
        ("batch_size", 0, 1),
        ("batch_size", -1, 1),
        ("top_k", 0, 1),
        ("workers", 0, 1),
        ("decode_processes", -1, 0),
    ],
)
def test_numbers_below_their_minimum_are_refused(
    classifier: Classifier, name: str, number: int, minimum: int
) -> None:
    text = f"{name}: found {number}; expected a whole number of at least {minimum}"
    with pytest.raises(InputError, match=text):
        list(classifier.stream([plain(CAT)], **{name: number}))  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [BROKEN_LOGITS, BROKEN_WEIGHTS])
def test_nan_becomes_an_error_and_its_neighbours_stay(classifier: Classifier, broken: int) -> None:
    found = classifier([plain(CAT), plain(broken), plain(DOG)])
    assert [p.label for p in found] == ["cat", None, "dog"]
    assert found[1] == Prediction("#1", error="#1: the model returned NaN or infinity")


def test_many_threads_get_the_same_answers(classifier: Classifier) -> None:
    colours = [(CAT, DOG, EEL, EVEN)[i % 4] for i in range(61)]
    expected = classifier([plain(c) for c in colours])
    assert [p.label for p in expected[:4]] == ["cat", "dog", "eel", "cat"]
    with ThreadPoolExecutor(8) as pool:
        calls = [
            pool.submit(classifier, [plain(c) for c in colours], batch_size=1 + i % 5)
            for i in range(16)
        ]
        assert all(call.result() == expected for call in calls)


@pytest.mark.parametrize(("task_size", "first", "most"), [(0, 12, 12), (8, 35, 55)])
def test_a_generator_is_read_only_a_few_batches_ahead(
    classifier: Classifier, backend: FakeBackend, task_size: int, first: int, most: int
) -> None:
    backend.task_size = task_size
    read = 0

    def images() -> Iterator[NDArray[np.uint8]]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield plain(DOG)

    ahead = []
    rows = classifier.stream(images(), batch_size=2)
    assert read == 0
    for given, prediction in enumerate(rows, start=1):
        assert prediction.label == "dog"
        ahead.append(read - given)
    assert read == len(ahead) == 1000
    # 4 batches of 2 are decoding and 2 are inferred; the first row comes when a third of them is
    # full, for which 2 more, less one, have been asked for. In turns, the first row comes when
    # tasks of 2, 2, 4, 4, 8, 8 and 8 are read; later, six tasks of 8 wait beside the rows' own.
    assert ahead[0] == first
    assert max(ahead) == most


def test_a_stream_that_is_dropped_stops_reading(classifier: Classifier) -> None:
    read = 0

    def images() -> Iterator[NDArray[np.uint8]]:
        nonlocal read
        while True:
            read += 1
            yield plain(DOG)

    rows = classifier.stream(images(), batch_size=2)
    assert next(rows).path == "#0"
    rows.close()
    assert read == 13


@pytest.mark.parametrize("task_size", [0, 4])
def test_a_bad_image_keeps_its_place_in_its_batch(backend: FakeBackend, task_size: int) -> None:
    backend.in_flight, backend.task_size = 1, task_size
    images = [plain(CAT), "missing.png", plain(DOG), plain(EEL), "gone.png", "none.png", plain(CAT)]
    found = Classifier(backend)(images, batch_size=2)
    assert [p.label for p in found] == ["cat", None, "dog", "eel", None, None, "cat"]
    assert backend.batches == [1, 2, 1]  # a batch is two images, unreadable ones included


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
@pytest.mark.parametrize("n_images", [0, 1, 7, 40])
def test_tasks_are_whole_batches_that_grow(
    backend: FakeBackend, batch_size: int, n_images: int
) -> None:
    backend.in_flight, backend.task_size = 2, 8
    decoded, lock = [], threading.Lock()
    classify = Classifier.classify

    def record(self: Classifier, images: list[Decoded], *rest: object, **more: object) -> object:
        with lock:
            decoded.append(len(images))
        return classify(self, images, *rest, **more)  # type: ignore[arg-type]

    colours = [(CAT, DOG, EEL)[i % 3] for i in range(n_images)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "classify", record)
        found = Classifier(backend)([plain(c) for c in colours], batch_size=batch_size)
    assert [p.label for p in found] == [("cat", "dog", "eel")[i % 3] for i in range(n_images)]
    whole, rest = divmod(n_images, batch_size)
    assert sorted(backend.batches) == sorted([batch_size] * whole + ([rest] if rest else []))
    sizes = {2: [2, 2, 4, 4, 8, 8, 8, 4], 5: [5, 5, 10, 10, 10]}  # 40 images, two threads
    if n_images == 40 and batch_size in sizes:
        assert sorted(decoded) == sorted(sizes[batch_size])


def test_a_number_of_workers_decodes_in_threads_beside(backend: FakeBackend) -> None:
    backend.task_size = 4
    names: set[str] = set()

    class Named(np.ndarray):  # type: ignore[type-arg]
        @property
        def dtype(self) -> object:  # type: ignore[override]
            names.add(threading.current_thread().name.rpartition("_")[0])
            return np.dtype(np.uint8)

    image = plain(CAT).view(Named)
    assert Classifier(backend)([image])[0].label == "cat"
    assert names == {"fedapt-turn"}
    names.clear()
    (row,) = Classifier(backend).stream([image], workers=1)
    assert row.label == "cat"
    assert names == {"fedapt-decode"}


def test_the_error_of_a_bad_image_holds_no_pixels(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    error = decode_one(str(path), "the name", PREPROCESSING).error
    assert error is not None
    assert "the name: found an unreadable image" in str(error)
    # a traceback keeps its frames, and they the decoded image
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def draw(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (70 + i, 90, 3), dtype=np.uint8) for i in range(count)]


def test_batch_sizes_of_a_real_model_agree(tiny_model: Path) -> None:
    classifier = Classifier.load(tiny_model, device="cpu")
    images = draw(11)
    expected = classifier(images, batch_size=1)
    assert len({p.score for p in expected}) > 5
    for batch_size in (2, 5, 32):
        found = classifier(images, batch_size=batch_size)
        for a, b in zip(found, expected, strict=True):
            assert (a.path, a.label, a.routed_to) == (b.path, b.label, b.routed_to)
            assert dict(a.top_k) == pytest.approx(dict(b.top_k), abs=1e-6)
            assert a.domain_weights == pytest.approx(b.domain_weights, abs=1e-6)


def test_rows_of_a_real_model_are_distributions(tiny_model: Path) -> None:
    for prediction in Classifier.load(tiny_model)(draw(5)):
        scores = [score for _, score in prediction.top_k]
        assert len(scores) == 3
        assert sum(scores) == pytest.approx(1.0, abs=1e-5)
        assert scores == sorted(scores, reverse=True)
        assert prediction.score == scores[0]
        assert sum(prediction.domain_weights.values()) == pytest.approx(1.0, abs=1e-5)
        weights = prediction.domain_weights
        assert prediction.routed_to == max(weights, key=weights.__getitem__)


def test_manifest_of_a_real_model(tiny_model: Path, tiny_run: Path) -> None:
    classifier = Classifier.load(tiny_model, device="cpu")
    manifest = classifier.manifest
    assert manifest.classes == ("blue disc", "red square", "stripes")
    assert manifest.domains == ("photo", "sketch")
    assert manifest.preprocessing.size == (64, 64)
    assert manifest.preprocessing.interpolation == "bicubic"
    assert manifest.preprocessing.resize_mode == "shortest"
    assert (manifest.method, manifest.rounds, manifest.precision) == ("fedapt", 3, "fp32")
    checkpoint = (tiny_run / "checkpoint.safetensors").read_bytes()
    assert manifest.checkpoint_sha256 == hashlib.sha256(checkpoint).hexdigest()
    assert classifier.description.startswith("ONNX Runtime ")
    assert classifier.description.endswith(" on cpu")


def test_many_threads_share_a_real_model(tiny_model: Path) -> None:
    classifier = Classifier.load(tiny_model, device="cpu")
    images = draw(6)
    expected = classifier(images, batch_size=6)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(classifier, images, batch_size=6) for _ in range(8)]
        for call in calls:
            for a, b in zip(call.result(), expected, strict=True):
                assert a.label == b.label
                assert dict(a.top_k) == pytest.approx(dict(b.top_k), abs=1e-6)


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_batches_at_once_as_the_backend_wants(backend: FakeBackend, at_once: int) -> None:
    backend.in_flight, backend.default_batch = at_once, 2
    here, most = threading.Semaphore(0), []
    lock, running = threading.Lock(), 0
    run = backend.run

    def slow(images: NDArray[np.uint8]) -> Outputs:
        nonlocal running
        with lock:
            running += 1
            most.append(running)
        here.acquire(timeout=0.3)  # long enough for others to come, were they let in
        with lock:
            running -= 1
        return run(images)

    backend.run = slow  # type: ignore[method-assign]
    found = Classifier(backend)([plain(CAT), plain(DOG)] * 6)
    assert [p.label for p in found] == ["cat", "dog"] * 6
    assert max(most) == at_once
    assert backend.batches == [2] * 6
