"""Every method from the command line: trained, evaluated, repeated, interrupted, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedapt.cli.app import main
from fedapt.core.names import FUSED_METHODS
from fedapt.core.records import read_records
from fedapt.data.domains import ImageTable, Labelled
from fedapt.data.features import extract_features
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint, load_checkpoint
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.rebuild import rebuild_method
from fedapt.training.methods import METHODS
from fedapt.training.methods.base import n_bytes
from fedapt_runtime import Classifier
from fedapt_runtime.errors import EXIT_INTERRUPTED
from tests.support.tiny import CLASSES, DOMAINS

CHECKPOINT = "checkpoint.safetensors"
SETTINGS = [
    *("--lr", "0.1", "--batch-size", "8", "--context-length", "4", "--seed", "3"),
    *("-o", "unsupervised.warm_up_rounds=1", "-o", "unsupervised.confidence=0.34"),
]
BANKS = ("fedapt", "fedapt-unsupervised", "adapt", "diprompt", "adaptive-analytic")
EVERY = pytest.mark.parametrize("method", METHODS)
OWNED = ["-o", "federation.clients_per_domain=2", "-o", "federation.sampled_per_domain=1"]
FEW = ["-o", "federation.min_images=2"]


@pytest.fixture(scope="module")
def train(tiny_images: Path, tiny_clip: Path) -> Any:
    def train(method: str, out: Path, *more: str, rounds: int = 2) -> int:
        named = ["--data", str(tiny_images), "--out", str(out), "--model", str(tiny_clip)]
        arguments = ["train", *named, "--method", method, "--rounds", str(rounds), *SETTINGS]
        return main([*arguments, *more])

    return train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, train: Any) -> Any:
    """A run folder of every method, trained once for this file."""
    folder, done = tmp_path_factory.mktemp("methods"), dict[str, Path]()

    def find(method: str) -> Path:
        if method not in done:
            assert train(method, folder / method) == 0
            done[method] = folder / method
        return done[method]

    return find


def read_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@EVERY
def test_evaluate_gives_what_train_gave(
    method: str,
    tmp_path: Path,
    train: Any,
    runs: Any,
    tiny_images: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert train(method, tmp_path / "run", "--json") == 0
    trained = json.loads(capsys.readouterr().out)
    checkpoint = tmp_path / "run" / CHECKPOINT
    evaluated = read_json(capsys, "evaluate", str(checkpoint), "--data", str(tiny_images))
    assert evaluated == trained
    assert trained["method"] == METHODS[method].title
    assert {n: d["n"] for n, d in trained["domains"].items()} == dict.fromkeys(DOMAINS, 6)
    has_banks = method in BANKS
    assert set(trained["routing"]) == (set(DOMAINS) if has_banks else set())
    # and the same seed the same bytes
    assert checkpoint.read_bytes() == (runs(method) / CHECKPOINT).read_bytes()


@EVERY
def test_the_records(method: str, runs: Any, tiny_images: Path) -> None:
    records = read_records(runs(method) / "records.jsonl")
    learned = load_checkpoint(runs(method) / CHECKPOINT).learned
    if method == "zero-shot":
        assert (records, learned) == ([], {})
        return
    n_rounds = 1 if METHODS[method].adds_up else 2
    assert [r["round"] for r in records] == [1, 2][:n_rounds]
    assert set(records[-1]["accuracy"]) == set(DOMAINS)
    # each of two clients receives and sends what is shared, and its own slice
    per_client = n_bytes(learned)
    if method == "local":
        per_client = 0
    elif method in ("adapt", "diprompt"):
        per_client -= 4 * len(CLASSES) * 4 * 32  # the other's context
    elif method == "adaptive-analytic":
        per_client //= 2  # the other's sums
    assert {r["bytes_sent"] for r in records} == {2 * 2 * per_client}


@EVERY
def test_another_seed_gives_other_bytes(method: str, tmp_path: Path, train: Any, runs: Any) -> None:
    assert train(method, tmp_path, "--seed", "4") == 0
    found, other = (load_checkpoint(run / CHECKPOINT).learned for run in (tmp_path, runs(method)))
    same = [found[name].equal(other[name]) for name in found]
    # sums depend on the images alone
    assert same == [METHODS[method].adds_up] * len(same)


@pytest.mark.parametrize("at", [2, 4], ids="in round {}".format)
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("fedapt-unsupervised", ["-o", "unsupervised.warm_up_rounds=2"]),
        ("fedapt-unsupervised", ["-o", "unsupervised.warm_up_rounds=2", *OWNED, *FEW]),
        ("adapt", [*OWNED, *FEW]),
        ("local", [*OWNED, *FEW]),
    ],
    ids=["unsupervised", "unsupervised, some", "adapt, some", "local, some"],
)
def test_interrupted_and_resumed_it_ends_with_the_same_bytes(
    method: str,
    more: list[str],
    at: int,
    tmp_path: Path,
    train: Any,
    whole: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in the worst moment: the record of a round is written, its checkpoint is not."""
    run, expected = tmp_path / "run", whole(method, more)
    save = Checkpoint.save

    def stop(self: Checkpoint, path: Path) -> None:
        if self.info.rounds == at:
            raise KeyboardInterrupt
        save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        assert train(method, run, *more, rounds=5) == EXIT_INTERRUPTED
    assert len(read_records(run / "records.jsonl")) == at
    assert train(method, run, *more, "--resume", rounds=5) == 0
    assert (run / CHECKPOINT).read_bytes() == (expected / CHECKPOINT).read_bytes()
    losses = [[r["loss"] for r in read_records(r / "records.jsonl")] for r in (run, expected)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, train: Any) -> Any:
    folder, done = tmp_path_factory.mktemp("whole"), dict[str, Path]()

    def find(method: str, more: list[str]) -> Path:
        name = " ".join([method, *more])
        if name not in done:
            done[name] = folder / str(len(done))
            assert train(method, done[name], *more, rounds=5) == 0
        return done[name]

    return find


def test_resuming_keeps_what_full_fine_tuning_settled(
    tmp_path: Path, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedapt.training.methods.full.ROUNDS", 2)  # instead of 10
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train("full", whole, rounds=50) == 0
    assert len(read_records(whole / "records.jsonl")) == 2
    assert train("full", run, rounds=1) == 0
    assert train("full", run, "--resume", rounds=50) == 0
    assert (run / CHECKPOINT).read_bytes() == (whole / CHECKPOINT).read_bytes()


FUSED = pytest.mark.parametrize("method", [name for name in METHODS if not METHODS[name].not_fused])


@pytest.fixture(scope="module")
def export(runs: Any) -> Any:
    def export(method: str, out: Path, *more: str) -> int:
        arguments = ["export", str(runs(method) / CHECKPOINT), "--out", str(out), *more]
        if method == "local":
            arguments += ["--client", "sketch"]
        # a model that was trained for two rounds may route softly
        return main([*arguments, "--min-agreement", "0"])

    return export


@FUSED
def test_the_fused_model_answers_as_the_method_does(
    method: str, tmp_path: Path, runs: Any, export: Any, tiny_images: Path, tiny_backbone: Backbone
) -> None:
    model, checkpoint = tmp_path / "model.onnx", load_checkpoint(runs(method) / CHECKPOINT)
    assert export(method, model) == 0
    paths = sorted(tiny_images.glob("sketch/*/*.png"))[::3]
    classifier = Classifier.load(model)
    found = classifier(paths)
    # the method's own prediction of the same images
    encoder = image_encoder(tiny_backbone)
    features = torch.from_numpy(extract_features(paths, encoder).values)
    labels, rows = torch.zeros(len(paths), dtype=torch.int64), torch.arange(len(paths))
    table = ImageTable(tuple(paths), features, labels)
    rebuilt, learned = rebuild_method(checkpoint, tiny_backbone, table)
    logits = rebuilt.predictor(learned)(Labelled(features, labels, rows), 1)
    if method == "local":
        logits = logits[0]  # of the domain's own model
    expected = logits.softmax(-1)
    for prediction, row in zip(found, expected, strict=True):
        assert prediction.score == pytest.approx(float(row.max()), abs=2e-4)
        assert prediction.label == checkpoint.info.classes[int(row.argmax())]
    names = rebuilt.bank_names(checkpoint.info.keys)
    several = rebuilt.routing(learned, features) is not None
    expected_names = names if several else ("sketch",) if method == "local" else ("all",)
    assert classifier.manifest.domains == expected_names
    assert main(["verify", str(model), str(runs(method) / CHECKPOINT), "--min-agreement", "0"]) == 0


@FUSED
def test_heads_of_one_clip_go_into_each_others_models(
    method: str, tmp_path: Path, export: Any, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = tmp_path / "own.onnx", tmp_path / "other.onnx"
    head, swapped = tmp_path / "head.safetensors", tmp_path / "swapped.onnx"
    assert export(method, own) == 0
    assert export(method, head, "--head-only") == 0
    assert export("fedapt" if method != "fedapt" else "promptfl", other) == 0
    capsys.readouterr()
    code = main(["swap-head", str(other), str(head), "--out", str(swapped)])
    if method in ("full", "fedclip"):  # whose towers are their own
        assert code == 8
        assert "expected a head of a CLIP with hash" in capsys.readouterr().err
        assert not swapped.exists()
        return
    assert code == 0
    paths = sorted(tiny_images.glob("*/*/00[01].png"))
    expected = [(p.label, p.routed_to) for p in Classifier.load(own)(paths)]
    assert [(p.label, p.routed_to) for p in Classifier.load(swapped)(paths)] == expected
    beside = Classifier.load(other, head=head)
    assert [(p.label, p.routed_to) for p in beside(paths)] == expected


def test_a_method_without_banks_says_why_it_is_not_exported(
    tmp_path: Path, export: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("cocoop", tmp_path / "model.onnx") == 4
    message = capsys.readouterr().err
    assert "found the method cocoop: every image has its own prompts" in message
    assert list(tmp_path.iterdir()) == []


def test_a_client_of_local_models_has_to_be_named(
    tmp_path: Path, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = str(runs("local") / CHECKPOINT), str(tmp_path / "model.onnx")
    assert main(["export", checkpoint, "--out", out, "--client", "photos"]) == 4
    message = capsys.readouterr().err
    assert "no client 'photos'; expected a client whose model is exported: photo, sketch" in message
    assert list(tmp_path.iterdir()) == []


@EVERY
def test_exact_prompts_are_fedapts_alone(
    method: str, runs: Any, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(runs(method) / CHECKPOINT)
    code = main(["evaluate", checkpoint, "--data", str(tiny_images), "--exact", "--json"])
    captured = capsys.readouterr()
    if method in FUSED_METHODS:
        assert code == 0
        assert json.loads(captured.out)["prompts"] == "exact"
    else:
        assert code == 2
        assert f"--exact: found a checkpoint of {method}; expected one of" in captured.err


@EVERY
def test_a_run_is_not_resumed_with_another_method(
    method: str, runs: Any, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "promptfl" if method != "promptfl" else "fedapt"
    before = (runs(method) / CHECKPOINT).read_bytes()
    assert train(other, runs(method), "--resume") == 2
    assert "train.method" in capsys.readouterr().err
    assert (runs(method) / CHECKPOINT).read_bytes() == before


@EVERY
def test_it_is_described(method: str, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(runs(method) / CHECKPOINT)]) == 0
    assert method in capsys.readouterr().out


def test_a_domain_that_was_left_out_is_tested(
    tmp_path: Path, train: Any, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for method in ("fedapt", "local"):
        run = tmp_path / method
        assert train(method, run, "-o", "data.leave_out=photo", "--json") == 0
        trained = json.loads(capsys.readouterr().out)
        assert set(trained["domains"]) == set(DOMAINS)
        assert trained["domains"]["photo"]["n"] == 6
        checkpoint = str(run / CHECKPOINT)
        assert read_json(capsys, "evaluate", checkpoint, "--data", str(tiny_images)) == trained


def test_a_federation_is_joined(
    tmp_path: Path, train: Any, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "data"
    alone.mkdir()
    (alone / "sketch").symlink_to(tiny_images / "sketch")
    first, second = tmp_path / "first", tmp_path / "second"
    assert train("fedapt", first, "--data", str(alone)) == 0
    assert train("fedapt", second, "--join", str(first / CHECKPOINT), rounds=1) == 0
    again = [*("--join", str(first / CHECKPOINT)), "--resume"]
    assert train("fedapt", second, *again, rounds=3) == 0
    old, new = (load_checkpoint(run / CHECKPOINT) for run in (first, second))
    assert (old.info.domains, new.info.domains) == (("sketch",), ("sketch", "photo"))
    assert new.tensors["keys"][:1].equal(old.tensors["keys"])
    assert new.info.rounds == 3
    assert str(tmp_path) not in (second / CHECKPOINT).read_bytes().decode("latin-1")
    evaluated = read_json(capsys, "evaluate", str(second / CHECKPOINT), "--data", str(tiny_images))
    assert list(evaluated["routing"]["photo"]) == ["sketch", "photo"]


def test_probabilities_are_calibrated_on_validation_images_and_labels_stay(
    tmp_path: Path, train: Any, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, checkpoint = tmp_path / "run", tmp_path / "run" / CHECKPOINT
    assert train("linear-probe", run, "--validation", "0.3") == 0
    plain, fitted = tmp_path / "plain.onnx", tmp_path / "fitted.onnx"
    report = {
        path: read_json(capsys, "export", str(checkpoint), "--out", str(path), *more)
        for path, more in ((plain, []), (fitted, ["--calibrate"]))
    }
    assert "calibration" not in report[plain]
    found = report[fitted]["calibration"]
    assert found["images"] == 2 * 3 * 2  # of eight training images of each class, 0.3
    assert found["factor"] > 0
    assert found["factor"] != pytest.approx(1.0, abs=1e-3)
    paths = sorted(tiny_images.glob("*/*/00[01].png"))
    before, after = (Classifier.load(path)(paths) for path in (plain, fitted))
    assert [p.label for p in before] == [p.label for p in after]
    assert [p.score for p in before] != [p.score for p in after]


def test_without_validation_images_nothing_is_calibrated(
    tmp_path: Path, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = str(runs("promptfl") / CHECKPOINT), tmp_path / "model.onnx"
    assert main(["export", checkpoint, "--out", str(out), "--calibrate"]) == 4
    assert "calibrating the probabilities: found no validation images" in capsys.readouterr().err
    assert not out.exists()
