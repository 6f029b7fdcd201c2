"""Damaged files and full disks around an export: a message, an exit code, older files intact."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from fedapt.cli.app import main
from fedapt.core.errors import FileError
from fedapt_export import engine as engine_module
from fedapt_export.engine import EngineSettings, build_engine
from fedapt_export.triton import write_repository
from fedapt_runtime.head import read_head
from tests.support.fusing import export_run, save_changed, save_head
from tests.support.manifests import make_manifest
from tests.support.tiny import write_tiny_clip

SHARES = [0.0, 0.001, 0.3, 0.9, 0.999]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    out = tmp_path_factory.mktemp("head") / "head.safetensors"
    export_run(tiny_run, out, head_only=True)
    return out


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output that is there already."""
    path = tmp_path / "out" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"older")
    return path


def assert_refused(
    capsys: pytest.CaptureFixture[str], code: int, expected: int, *parts: str
) -> None:
    """The four parts of a message stand on stderr, and no traceback."""
    captured = capsys.readouterr()
    assert code == expected, captured.err
    for part in ("error: ", "found ", "; expected ", " To do: ", *parts):
        assert part in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def assert_untouched(out: Path, *names: str) -> None:
    assert out.read_bytes() == b"older"
    assert sorted(p.name for p in out.parent.iterdir()) == sorted({out.name, *names})


def cut(source: Path, target: Path, share: float) -> Path:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


# damaged files


@pytest.mark.parametrize("share", SHARES)
def test_a_damaged_checkpoint(
    share: float, tiny_run: Path, tiny_model: Path, tmp_path: Path, out: Path, capsys: Any
) -> None:
    broken = cut(tiny_run / "checkpoint.safetensors", tmp_path / "c.safetensors", share)
    code = main(["verify", str(tiny_model), str(broken)])
    assert_refused(capsys, code, 4, str(broken))
    code = main(["export", str(broken), "--out", str(out)])
    assert_refused(capsys, code, 4, str(broken))
    code = main(["describe", str(broken)])
    captured = capsys.readouterr()
    assert code in (4, 8)  # an empty file may be an empty model as well
    assert captured.err.startswith(f"error: {broken}: found ")
    assert_untouched(out)


@pytest.mark.parametrize("share", SHARES)
def test_a_damaged_model(
    share: float,
    tiny_run: Path,
    tiny_model: Path,
    head: Path,
    tmp_path: Path,
    out: Path,
    capsys: Any,
) -> None:
    broken = cut(tiny_model, tmp_path / "m.onnx", share)
    kinds = (6, 8)  # not ONNX; or ONNX, and no model of fedapt's
    for command in (
        ["verify", str(broken), str(tiny_run / "checkpoint.safetensors")],
        ["swap-head", str(broken), str(head), "--out", str(out)],
        ["describe", str(broken)],
    ):
        code = main(command)
        captured = capsys.readouterr()
        assert code in (4, *kinds)
        assert captured.err.splitlines()[-1].startswith(f"error: {broken}: found ")
        assert " To do: " in captured.err
        assert "Traceback" not in captured.err
    assert_untouched(out)


def test_a_model_whose_graph_is_gone(
    tiny_run: Path, tiny_model: Path, head: Path, tmp_path: Path, out: Path, capsys: Any
) -> None:
    """A manifest alone makes no model."""
    model = onnx.load(tiny_model)
    model.graph.Clear()
    broken = tmp_path / "m.onnx"
    save_changed(model, broken)
    code = main(["swap-head", str(broken), str(head), "--out", str(out)])
    assert_refused(capsys, code, 6, "found a graph without adaptive_network, ")
    code = main(["verify", str(broken), str(tiny_run / "checkpoint.safetensors")])
    captured = capsys.readouterr()
    assert code in (6, 8)
    assert "Traceback" not in captured.err
    assert_untouched(out)


def test_a_model_in_place_of_a_head_and_the_other_way(
    tiny_model: Path, head: Path, out: Path, capsys: Any
) -> None:
    code = main(["swap-head", str(tiny_model), str(tiny_model), "--out", str(out)])
    assert_refused(capsys, code, 8, "expected a head written by `fedapt export --head-only`")
    code = main(["swap-head", str(head), str(head), "--out", str(out)])
    assert_refused(capsys, code, 6, "a file that onnx cannot read")
    assert_untouched(out)


def test_a_checkpoint_in_place_of_a_head(
    tiny_run: Path, tiny_model: Path, out: Path, capsys: Any
) -> None:
    checkpoint = str(tiny_run / "checkpoint.safetensors")
    code = main(["swap-head", str(tiny_model), checkpoint, "--out", str(out)])
    told = ("found a checkpoint; expected a head", f"fedapt export {checkpoint} --head-only --out")
    assert_refused(capsys, code, 8, *told)
    assert_untouched(out)


@pytest.mark.parametrize("metadata", [5, ["fedapt"], {"fedapt": 5}])
def test_a_head_whose_metadata_are_none(
    metadata: Any, head: Path, tiny_model: Path, tmp_path: Path, out: Path, capsys: Any
) -> None:
    data = head.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]) | {"__metadata__": metadata}).encode()
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    code = main(["swap-head", str(tiny_model), str(wrong), "--out", str(out)])
    assert_refused(capsys, code, 8, "found a damaged ")
    assert_untouched(out)


# heads that do not fit


def test_a_head_of_another_clip(
    tiny_model: Path, tmp_path: Path, tiny_images: Path, out: Path, capsys: Any
) -> None:
    clip = write_tiny_clip(tmp_path / "other", seed=9)
    run = tmp_path / "run"
    named = ["--data", str(tiny_images), "--out", str(run), "--model", str(clip)]
    assert main(["train", *named, "--rounds", "1", "--context-length", "2"]) == 0
    export_run(run, tmp_path / "h.safetensors", head_only=True)
    capsys.readouterr()
    code = main(["swap-head", str(tiny_model), str(tmp_path / "h.safetensors"), "--out", str(out)])
    assert_refused(capsys, code, 8, "found a head of a CLIP with hash", "the model's CLIP")
    assert_untouched(out)


def test_a_head_whose_names_are_not_as_many_as_its_tensors(
    head: Path, tiny_model: Path, tmp_path: Path, out: Path, capsys: Any
) -> None:
    manifest = json.loads(read_head(head).manifest.to_json())
    manifest["classes"].append("one more")
    wrong = tmp_path / "wrong.safetensors"
    save_file(load_file(str(head)), str(wrong), {"fedapt": json.dumps(manifest)})
    code = main(["swap-head", str(tiny_model), str(wrong), "--out", str(out)])
    assert_refused(capsys, code, 8, "for 4 classes and 2 domains")
    assert_untouched(out)


def test_a_head_of_another_width(
    head: Path, tiny_model: Path, tmp_path: Path, out: Path, capsys: Any
) -> None:
    """Its manifest names the right CLIP, and its tensors are of another."""
    tensors = load_file(str(head))
    for name in ("text_banks", "adaptive_network"):
        tensors[name] = np.repeat(tensors[name], 2, axis=0)
    wrong = tmp_path / "wrong.safetensors"
    save_head(tensors, read_head(head).manifest, wrong)
    code = main(["swap-head", str(tiny_model), str(wrong), "--out", str(out)])
    captured = capsys.readouterr()
    assert code == 8, captured.err
    assert "for features of width" in captured.err
    assert_untouched(out)


# engines


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine with the description that belongs to it."""
    import hashlib

    path = tmp_path / "model.engine"
    path.write_bytes(b"plan")
    manifest = json.loads(make_manifest(("a", "b"), ("d",)).to_json())
    description = {
        "flavour": "rtx",
        "library": {"name": "tensorrt-rtx", "version": "1.7"},
        "compute_capabilities": ["sm89"],
        "batch": [1, 2, 4],
        "engine_sha256": hashlib.sha256(b"plan").hexdigest(),
        "manifest": manifest,
    }
    path.with_name("model.engine.json").write_text(json.dumps(description))
    return path


def test_an_engine_with_its_description_is_described(engine: Path, capsys: Any) -> None:
    assert main(["describe", str(engine), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["classes"]) == ("engine", ["a", "b"])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: '"text"',
        lambda text: '{"manifest": {}}',
        lambda text: '{"engine_sha256": "00"}',
        lambda text: '{"engine_sha256": 12, "manifest": {}}',
        lambda text: json.dumps(json.loads(text) | {"engine_sha256": None}),
        lambda text: json.dumps(json.loads(text) | {"manifest": None}),
        lambda text: json.dumps(json.loads(text) | {"manifest": "x"}),
        lambda text: json.dumps(json.loads(text) | {"engine_sha256": "0" * 64}),
    ],
    ids=[
        "empty", "cut", "list", "null", "text", "no hash", "no manifest", "hash is a number",
        "hash is null", "manifest is null", "manifest is text", "another hash",
    ],
)  # fmt: skip
def test_a_description_that_is_damaged_or_anothers(
    change: Callable[[str], str], engine: Path, capsys: Any
) -> None:
    beside = engine.with_name("model.engine.json")
    beside.write_text(change(beside.read_text()))
    code = main(["describe", str(engine)])
    assert_refused(capsys, code, 8, "model.engine")


def test_a_description_that_is_no_text(engine: Path, capsys: Any) -> None:
    engine.with_name("model.engine.json").write_bytes(b"\xff\xfe\x00")
    assert_refused(capsys, main(["describe", str(engine)]), 8, "no readable description")


def test_a_description_of_another_schema(engine: Path, capsys: Any) -> None:
    """Its manifest is of a version that this one does not know."""
    beside = engine.with_name("model.engine.json")
    description = json.loads(beside.read_text())
    description["manifest"]["schema"] = 99
    beside.write_text(json.dumps(description))
    assert_refused(capsys, main(["describe", str(engine)]), 8, "schema 99")


# calibration


def test_a_calibration_folder_with_bad_images_alone(
    tiny_run: Path, tmp_path: Path, out: Path, capsys: Any
) -> None:
    for domain in ("photo", "sketch"):
        for name in ("blue_disc", "red_square"):
            folder = tmp_path / "bad" / domain / name
            folder.mkdir(parents=True)
            for i in range(4):
                (folder / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(i * 10)))
    command = ["export", str(tiny_run / "checkpoint.safetensors"), "--out", str(out)]
    more = ["--precision", "int8", "--calibration", str(tmp_path / "bad")]
    code = main([*command, *more])
    assert_refused(capsys, code, 4, "found no readable image among")
    (tmp_path / "empty").mkdir()
    more[-1] = str(tmp_path / "empty")
    assert_refused(capsys, main([*command, *more]), 4, "empty")
    more[-1] = str(tmp_path / "absent")
    assert_refused(capsys, main([*command, *more]), 4, "absent")
    assert_untouched(out)


# a full disk


def fill_disk(monkeypatch: pytest.MonkeyPatch, pattern: str, where: str) -> None:
    """Writing to a name like `pattern` fails, at its first byte or at its rename."""

    def full() -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def is_meant(path: object) -> bool:
        return re.search(pattern, Path(str(path)).name) is not None

    if where == "rename":
        real_replace = Path.replace

        def replace(path: Path, target: Any) -> Path:
            if is_meant(target):
                raise full()
            return real_replace(path, target)

        monkeypatch.setattr(Path, "replace", replace)
        return
    real_open, real_copy = Path.open, shutil.copyfile

    class FullDisk:
        """Takes half of what is written first."""

        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __enter__(self) -> FullDisk:
            return self

        def __exit__(self, *_: object) -> None:
            self._stream.close()

        def write(self, data: Any) -> int:
            self._stream.write(data[: len(data) // 2])
            raise full()

        def writelines(self, parts: Any) -> None:
            for part in parts:
                self.write(part)

    def open_path(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        stream = real_open(path, mode, *rest, **options)
        return FullDisk(stream) if "w" in mode and is_meant(path) else stream

    def copyfile(source: Any, target: Any, **options: Any) -> Any:
        if is_meant(target):
            Path(target).write_bytes(Path(source).read_bytes())
        return real_copy(source, target, **options)

    monkeypatch.setattr(Path, "open", open_path)
    monkeypatch.setattr(shutil, "copyfile", copyfile)


places = pytest.mark.parametrize("where", ["write", "rename"])


@places
def test_the_disk_is_full_under_a_model(
    where: str, tiny_run: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    fill_disk(monkeypatch, r"model\.onnx", where)
    command = ["export", str(tiny_run / "checkpoint.safetensors"), "--out", str(out)]
    code = main([*command, "--min-agreement", "0"])
    assert_refused(capsys, code, 4, "No space left on device", "free space")
    assert_untouched(out)


@places
def test_the_disk_is_full_under_a_swapped_model(
    where: str,
    tiny_model: Path,
    head: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    fill_disk(monkeypatch, r"model\.onnx", where)
    code = main(["swap-head", str(tiny_model), str(head), "--out", str(out)])
    assert_refused(capsys, code, 4, "No space left on device")
    assert_untouched(out)


def fake_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(model: Path, out: Path, settings: EngineSettings) -> dict[str, Any]:
        out.write_bytes(b"newer plan")
        return {"library": "tensorrt-rtx", "version": "1", "target": "default"}

    monkeypatch.setattr(engine_module, "_run_builder", build)
    monkeypatch.setattr(EngineSettings, "resolve", lambda settings, precision="fp32": settings)


@places
def test_the_disk_is_full_under_an_engine(
    where: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_builder(monkeypatch)
    out = tmp_path / "model.engine"
    out.write_bytes(b"older")
    fill_disk(monkeypatch, r"model\.engine(\.(?!json)|$)", where)
    with pytest.raises(FileError, match="No space left on device") as caught:
        build_engine(tiny_model, out, EngineSettings("rtx"))
    assert caught.value.exit_code == 4
    assert_untouched(out)


@places
def test_the_disk_is_full_under_an_engines_description(
    where: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine and its description belong together: the older pair stays, or none is there."""
    fake_builder(monkeypatch)
    out = tmp_path / "model.engine"
    with monkeypatch.context() as patch:
        fill_disk(patch, r"model\.engine\.json", where)
        with pytest.raises(FileError, match="No space left on device"):
            build_engine(tiny_model, out, EngineSettings("rtx"))
    assert not out.with_name("model.engine.json").exists()
    build_engine(tiny_model, out, EngineSettings("rtx"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.engine", "model.engine.json"]


@places
@pytest.mark.parametrize("name", ["model.onnx", "classes.txt", "domains.txt", "config.pbtxt"])
def test_the_disk_is_full_under_a_triton_repository(
    name: str, where: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file of it is half-written, and without its configuration Triton serves nothing."""
    folder = tmp_path / "repository"
    manifest = make_manifest(("a", "b"), ("d",))
    with monkeypatch.context() as patch:
        fill_disk(patch, re.escape(name), where)
        with pytest.raises(FileError, match="No space left on device"):
            write_repository(tiny_model, folder, manifest, EngineSettings())
    target = folder / tiny_model.stem
    left = {p.name: p for p in target.rglob("*") if p.is_file()}
    assert name not in left
    assert "config.pbtxt" not in left
    assert not [n for n in left if n.startswith(".")]
    assert "model.onnx" not in left or left["model.onnx"].read_bytes() == tiny_model.read_bytes()
    write_repository(tiny_model, folder, manifest, EngineSettings())
    assert (target / "config.pbtxt").is_file()


_LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from pathlib import Path
kind, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
from fedapt_runtime.errors import ReportedError
try:
    if kind == "model":
        from fedapt.core.files import write_bytes
        write_bytes(out, source.read_bytes())
    else:
        import onnx
        from fedapt_export.engine import EngineSettings
        from fedapt_export.model_file import read_manifest
        from fedapt_export.triton import write_repository
        manifest = read_manifest(onnx.load(source), source)
        write_repository(source, out.parent, manifest, EngineSettings())
except ReportedError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
@pytest.mark.parametrize("kind", ["model", "triton"])
def test_a_real_limit_on_a_files_size(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """The kernel itself refuses the bytes, in a process of its own."""
    assert tiny_model.stat().st_size > 20_000
    out = tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    out.write_bytes(b"older")
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, kind, str(tiny_model), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "found File too large; expected a file that can be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_bytes() == b"older"
    left = sorted(str(p.relative_to(out.parent)) for p in out.parent.rglob("*") if p.is_file())
    assert left == ["model.onnx"]
