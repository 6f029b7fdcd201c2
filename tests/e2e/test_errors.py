"""Bad input, one case each: a message that says what to do, an exit code, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from fedapt.cli.app import main
from fedapt.core.records import read_records
from fedapt.model.checkpoint import load_checkpoint
from tests.support.tiny import write_tiny_clip, write_tiny_images

SMALL = ["--rounds", "1", "--context-length", "2"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_tiny_images(tmp_path / "data", per_class=3)


def train(images: Path, out: Path, clip: Path, *more: str) -> int:
    named = ["--data", str(images), "--out", str(out), "--model", str(clip)]
    return main(["train", *named, *SMALL, *more])


def assert_error(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """The four parts of a message stand on stderr, nothing on stdout, and no traceback."""
    captured = capsys.readouterr()
    for part in ("error: ", "; expected ", " To do: ", *parts):
        assert part in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_no_such_folder(tmp_path: Path, tiny_clip: Path, capsys) -> None:
    assert train(tmp_path / "absent", tmp_path / "run", tiny_clip) == 4
    assert_error(capsys, "absent", "no such file or directory")
    assert not (tmp_path / "run").exists()


def test_an_empty_domain(images: Path, tmp_path: Path, tiny_clip: Path, capsys) -> None:
    (images / "webcam" / "red_square").mkdir(parents=True)
    assert train(images, tmp_path / "run", tiny_clip) == 4
    assert_error(capsys, "webcam: found a domain without images")
    assert not (tmp_path / "run").exists()


def test_a_class_missing_in_a_domain(images: Path, tmp_path: Path, tiny_clip: Path, capsys) -> None:
    shutil.rmtree(images / "sketch" / "stripes")
    assert train(images, tmp_path / "run", tiny_clip) == 4
    assert_error(capsys, "no images in sketch/stripes", "data.allow_missing_classes=true")
    allowed = ["-o", "data.allow_missing_classes=true"]
    assert train(images, tmp_path / "run", tiny_clip, *allowed) == 0


def test_a_domain_of_one_class(images: Path, tmp_path: Path, tiny_clip: Path, capsys) -> None:
    for name in ("stripes", "blue_disc"):
        shutil.rmtree(images / "sketch" / name)
    for more in ([], ["-o", "data.allow_missing_classes=true"]):
        assert train(images, tmp_path / "run", tiny_clip, *more) == 4
        assert_error(capsys, "sketch: found images of one class only, 'red_square'")
    assert not (tmp_path / "run").exists()


def test_more_shots_than_images(images: Path, tmp_path: Path, tiny_clip: Path, capsys) -> None:
    assert train(images, tmp_path / "run", tiny_clip, "-o", "data.shots=3") == 4
    assert_error(
        capsys,
        "data.shots = 3: found 2 training images in photo/blue_disc",
        "at least 3 in every class of every domain",
    )
    assert not (tmp_path / "run").exists()
    assert train(images, tmp_path / "run", tiny_clip, "-o", "data.shots=2") == 0


def test_a_domain_that_is_not_there_cannot_be_left_out(
    images: Path, tmp_path: Path, tiny_clip: Path, capsys
) -> None:
    assert train(images, tmp_path / "run", tiny_clip, "-o", "data.leave_out=dslr") == 4
    messages = capsys.readouterr().err
    assert "data.leave_out = 'dslr': found domains photo, sketch; expected one of" in messages
    assert "Traceback" not in messages


def test_two_classes_of_one_name(images: Path, tmp_path: Path, tiny_clip: Path, capsys) -> None:
    shutil.copytree(images / "photo" / "red_square", images / "photo" / "Red square")
    assert train(images, tmp_path / "run", tiny_clip) == 4
    assert_error(capsys, "'Red square' and 'red_square', both read as 'red square'")


def test_broken_images_are_skipped_counted_and_named(
    images: Path, tmp_path: Path, tiny_clip: Path, capsys
) -> None:
    whole = (images / "photo" / "stripes" / "000.png").read_bytes()
    (images / "photo" / "stripes" / "000.png").write_bytes(whole[: len(whole) // 2])
    (images / "sketch" / "stripes" / "001.png").write_text("no image at all")
    assert train(images, tmp_path / "run", tiny_clip, "-o", "data.test_fraction=0.0") == 0
    messages = capsys.readouterr().err
    assert "photo/stripes/000.png: an unreadable image" in messages
    assert "sketch/stripes/001.png: not an image of a known format" in messages
    assert "2 of 18 images skipped" in messages


def test_an_image_too_large_is_named(
    images: Path, tmp_path: Path, tiny_clip: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fedapt_runtime.preprocess.MAX_PIXELS", 80 * 72 - 1)
    assert train(images, tmp_path / "run", tiny_clip) == 4
    messages = capsys.readouterr().err
    assert "80 x 72 pixels, over the limit of 5,759" in messages
    assert "no readable training image" in messages


def test_data_check_names_everything_that_is_wrong(images: Path, capsys) -> None:
    assert main(["data", "check", str(images), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_sound"] is True
    (images / "photo" / "stripes" / "000.png").write_bytes(b"broken")
    shutil.rmtree(images / "sketch" / "stripes")
    assert main(["data", "check", str(images)]) == 4
    shown = capsys.readouterr().out
    assert "cannot be read: photo/stripes/000.png: not an image" in shown
    assert "has no images: sketch/stripes" in shown
    assert "has fewer than 5 images: photo/blue_disc" in shown
    assert "not sound" in shown


def test_an_unknown_model(images: Path, tmp_path: Path, capsys) -> None:
    named = ["--data", str(images), "--out", str(tmp_path / "run")]
    assert main(["train", *named, "--model", "ViT-B-33"]) == 4
    assert_error(capsys, "the unknown model 'ViT-B-33'", "did you mean ViT-B-32")


def test_a_model_without_its_tag(images: Path, tmp_path: Path, capsys) -> None:
    named = ["--data", str(images), "--out", str(tmp_path / "run")]
    assert main(["train", *named, "--model", "ViT-B-32-quickgelu"]) == 4
    assert_error(capsys, "found no pretrained weights; expected one of openai")


def test_weights_that_cannot_be_reached(
    images: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedapt.model import hub
    from fedapt.model.open_clip_import import import_open_clip

    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(import_open_clip(), "create_model", offline)
    monkeypatch.setattr(hub, "_find_silence", lambda endpoint: "")  # the hub answers
    named = ["--data", str(images), "--out", str(tmp_path / "run")]
    model = ["--model", "ViT-B-32-quickgelu", "--pretrained", "openai"]
    assert main(["train", *named, *model]) == 4
    told = "found no usable weights (OSError: We couldn't connect to the hub)"
    assert_error(capsys, told, "name the file with --pretrained; the")


def test_a_run_that_never_began_takes_no_folder(
    images: Path, tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(images, run, tiny_clip / "absent") == 4
    assert_error(capsys, "absent: found no open_clip_config.json")
    assert not run.exists()
    assert train(images, run, tiny_clip) == 0


def test_resuming_where_there_is_no_run(
    images: Path, tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "--resume", "--out", str(run)]) == 2
    assert capsys.readouterr().err == (
        f"error: {run}: found no run; expected a run to resume."
        " To do: check --out, or begin a run with --data.\n"
    )
    assert not run.exists()
    told = f"nothing to resume in {run}: a new run begins"
    assert train(images, run, tiny_clip, "--resume") == 0
    assert told in capsys.readouterr().err.splitlines()
    assert train(images, run, tiny_clip, "--resume") == 0
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert told not in capsys.readouterr().err
    (run / "checkpoint.safetensors").unlink()  # as a run that was stopped before its first round
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert told in capsys.readouterr().err.splitlines()


def test_a_folder_that_is_taken(images: Path, tmp_path: Path, tiny_clip: Path, capsys) -> None:
    run = tmp_path / "run"
    assert train(images, run, tiny_clip) == 0
    before = (run / "checkpoint.safetensors").read_bytes()
    capsys.readouterr()
    assert train(images, run, tiny_clip) == 2
    assert_error(capsys, "found a run; expected a new folder", "--resume")
    assert train(images, run, tiny_clip, "--resume", "--lr", "0.5") == 2
    assert_error(capsys, "another value of train.lr", "(train.rounds alone may change)")
    assert (run / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-o", "train.round=3"], "the unknown name 'train.round'"),
        (
            ["-o", "train.local_epochs=many"],
            "local_epochs = 'many'; expected an integer from",
        ),
        (["--lr", "-1"], "--lr: found train.lr = -1.0; expected a number from 1e-9 to 1 000"),
        (
            ["--rounds", "0"],
            "--rounds: found train.rounds = 0; expected an integer from 1 to",
        ),
        (["--seed", "-1"], "error: --seed: found train.seed = -1; expected an integer from 0 to"),
        (["--batch-size", "0"], "error: --batch-size: found train.batch_size = 0"),
        (["--context-length", "0"], "error: --context-length: found prompt.context_length = 0"),
        (["--temperature", "0"], "error: --temperature: found prompt.temperature = 0.0"),
        (["-o", "rounds"], "an override without a setting and a value"),
        (["-o", "train.foo=1"], "error: -o train.foo=1: found the unknown name 'train.foo'"),
        (
            ["--method", "fedavg"],
            "error: --method: found train.method = 'fedavg'; expected one of fedapt, fedapt-un",
        ),
        (["-o", "federation.alpha=0"], "federation.alpha = 0; expected a number from 1e-6 to"),
        (
            ["--validation", "1"],
            "error: --validation: found data.validation_fraction = 1.0; expected a number",
        ),
        (["--config", "absent.toml"], "absent.toml: found No such file"),
    ],
)
def test_wrong_settings(
    images: Path, tmp_path: Path, tiny_clip: Path, capsys, arguments: list[str], text: str
) -> None:
    assert train(images, tmp_path / "run", tiny_clip, *arguments) == 3
    assert_error(capsys, text)


def test_wrong_usage(capsys) -> None:
    assert main(["train"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["trian"]) == 2
    assert main(["train", "--out", "run"]) == 2
    assert_error(capsys, "--data: found nothing")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_round_before(
    images: Path, tmp_path: Path, tiny_clip: Path, capsys
) -> None:
    run = tmp_path / "run"
    # every step multiplies by -9999, until float32 ends
    wild = ["--rounds", "30", "--lr", "1000", "-o", "train.weight_decay=10"]
    assert train(images, run, tiny_clip, *wild) == 5
    messages = capsys.readouterr().err
    done = len(read_records(run / "records.jsonl"))
    assert 2 <= done < 29
    assert re.search(
        rf"error: round {done + 1}, client (photo|sketch): found .+; expected finite numbers\. "
        r"To do: lower train\.lr; the checkpoint of the previous round is kept\.",
        messages,
    )
    assert "Traceback" not in messages
    kept = load_checkpoint(run / "checkpoint.safetensors")
    assert kept.info.rounds == done
    assert all(bool(tensor.isfinite().all()) for tensor in kept.tensors.values())
    # and it is the round that was reached: the next one fails again
    before = (run / "checkpoint.safetensors").read_bytes()
    assert main(["train", "--out", str(run), "--resume"]) == 5
    assert f"round {done + 1}, client" in capsys.readouterr().err
    assert (run / "checkpoint.safetensors").read_bytes() == before


def test_a_falling_rate_belongs_to_its_number_of_rounds(
    images: Path, tmp_path: Path, tiny_clip: Path, capsys
) -> None:
    run = tmp_path / "run"
    assert train(images, run, tiny_clip, "-o", "train.schedule=cosine") == 0
    capsys.readouterr()
    assert main(["train", "--out", str(run), "--resume", "--rounds", "2"]) == 2
    assert_error(
        capsys,
        "found another value of train.rounds; expected the settings that the run began with.",
    )


@pytest.fixture
def checkpoint(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_run / "checkpoint.safetensors", tmp_path / "copy.safetensors"))


def both_commands(checkpoint: Path, images: Path, out: Path) -> list[list[str]]:
    return [
        ["evaluate", str(checkpoint), "--data", str(images)],
        ["export", str(checkpoint), "--out", str(out)],
    ]


def test_a_damaged_checkpoint(checkpoint: Path, images: Path, tmp_path: Path, capsys) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    for command in both_commands(checkpoint, images, tmp_path / "model.onnx"):
        assert main(command) == 4
        assert_error(capsys, "found a damaged file", "a checkpoint.safetensors written by")
    assert not (tmp_path / "model.onnx").exists()


def test_a_checkpoint_of_another_schema(
    checkpoint: Path, images: Path, tmp_path: Path, capsys
) -> None:
    with safe_open(str(checkpoint), "pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        metadata = json.loads(stream.metadata()["fedapt"])
    save_file(tensors, str(checkpoint), {"fedapt": json.dumps(metadata | {"schema": 1})})
    for command in both_commands(checkpoint, images, tmp_path / "model.onnx"):
        assert main(command) == 4
        assert_error(capsys, "a checkpoint of schema 1; expected schema 2")


def test_a_checkpoint_of_another_clip(
    tmp_path: Path, images: Path, tiny_clip: Path, capsys
) -> None:
    clip = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    run = tmp_path / "run"
    assert train(images, run, clip) == 0
    capsys.readouterr()
    write_tiny_clip(clip, seed=5)
    checkpoint = run / "checkpoint.safetensors"
    for command in both_commands(checkpoint, images, tmp_path / "model.onnx"):
        assert main(command) == 4
        assert_error(capsys, "found weights of hash", "which the checkpoint was trained on")


def test_a_federation_that_cannot_be_joined(
    checkpoint: Path, images: Path, tmp_path: Path, tiny_clip: Path, capsys
) -> None:
    join = ["--join", str(checkpoint)]
    assert train(images, tmp_path / "a", tiny_clip, "--join", str(tmp_path / "absent")) == 4
    assert_error(capsys, "absent: found no such file")
    assert not (tmp_path / "a").exists()
    assert train(images, tmp_path / "b", tiny_clip, *join) == 4  # of another context length
    assert "--join: found meta_prompt of shape [3, 4, 32]" in capsys.readouterr().err
    same = ["--context-length", "4"]
    assert train(images, tmp_path / "c", tiny_clip, *join, *same, "--method", "promptfl") == 4
    assert "--join: found context of shape None" in capsys.readouterr().err
    shutil.copytree(images, tmp_path / "other")
    for domain in ("photo", "sketch"):
        (tmp_path / "other" / domain / "stripes").rename(tmp_path / "other" / domain / "bars")
    assert train(tmp_path / "other", tmp_path / "e", tiny_clip, *join, *same) == 4
    messages = capsys.readouterr().err
    assert "--join: found images of the classes bars, blue disc, red square; expected" in messages
    assert "those of the federation: blue disc, red square, stripes" in messages
    (images / "sketch").rename(images / "drawing")
    assert train(images, tmp_path / "d", tiny_clip, *join, *same) == 4
    assert "--join: found no images of sketch; expected all domains" in capsys.readouterr().err


def test_classes_that_the_checkpoint_does_not_know(checkpoint: Path, images: Path, capsys) -> None:
    (images / "photo" / "stripes").rename(images / "photo" / "dots")
    assert main(["evaluate", str(checkpoint), "--data", str(images)]) == 4
    assert_error(capsys, "found the class 'dots'; expected classes of the checkpoint: blue disc")


def test_a_full_disk_leaves_the_last_whole_checkpoint(
    images: Path, tmp_path: Path, tiny_clip: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert train(images, run, tiny_clip) == 0
    before = (run / "checkpoint.safetensors").read_bytes()
    capsys.readouterr()
    real = os.fsync

    def full(handle: int) -> None:
        if "checkpoint" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert train(images, run, tiny_clip, "--resume", "--rounds", "2") == 4
    assert_error(capsys, "No space left on device", "free space")
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert not list(run.glob(".*"))
    monkeypatch.undo()
    assert train(images, run, tiny_clip, "--resume", "--rounds", "2") == 0


def test_an_output_folder_that_cannot_be_made(checkpoint: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "model.onnx"
    assert main(["export", str(checkpoint), "--out", str(out)]) == 4
    assert_error(capsys, "a file that can be written")
