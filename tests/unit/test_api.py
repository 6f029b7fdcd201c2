"""The Python API: its names, what it imports, and every example in its docstrings."""

from __future__ import annotations

import doctest
import inspect
import shutil
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import fedapt
from fedapt.core import names
from fedapt.core.config import read_config
from fedapt.core.errors import CheckpointError, ConfigError, UsageError
from fedapt.run.settings import read_run_settings
from fedapt.training import methods
from tests.packaging.test_imports import HEAVY, modules_after

NAMES = [
    "Classifier",
    "Config",
    "Method",
    "Reporter",
    "Run",
    "__version__",
    "compare",
    "errors",
    "load",
    "register_method",
    "train",
]


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
    found = [t for t in finder.find(fedapt, "fedapt", module=False) if t.name == "fedapt"]
    for name in NAMES:
        tests = finder.find(getattr(fedapt, name), name, module=False)
        if inspect.ismodule(getattr(fedapt, name)):
            tests = [t for t in tests if t.name == name]
        found += [test for test in tests if test.examples]
    return found


EXAMPLES = examples()


def test_the_public_names_are_these_and_all_are_there() -> None:
    assert fedapt.__all__ == NAMES == dir(fedapt)
    for name in NAMES:
        assert getattr(fedapt, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'tune'"):
        fedapt.tune  # noqa: B018


def test_every_public_name_has_an_example() -> None:
    shown = {test.name.partition(".")[0] for test in EXAMPLES}
    assert shown == {*NAMES, "fedapt"} - {"__version__"}
    methods = {test.name for test in EXAMPLES if test.name.startswith("Run.")}
    assert methods == {"Run.images", "Run.evaluate", "Run.report", "Run.export"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_an_example_does_what_it_shows(
    example: doctest.DocTest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_images: Path,
    tiny_clip: Path,
    tiny_run: Path,
    tiny_model: Path,
) -> None:
    (tmp_path / "images").symlink_to(tiny_images)
    (tmp_path / "clip").symlink_to(tiny_clip)
    shutil.copytree(tiny_run, tmp_path / "run")
    if "export(" not in example.docstring:
        shutil.copy(tiny_model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    example.globs = {"fedapt": fedapt}
    try:
        failed, tried = doctest.DocTestRunner().run(example, out=said.append)
    finally:
        for known in (names.METHODS, methods.METHODS):
            known.pop("another-probe", None)
    assert tried
    assert not failed, "".join(said)


def test_importing_fedapt_loads_nothing_heavy() -> None:
    assert modules_after("import fedapt").isdisjoint((*HEAVY, "pydantic", "numpy"))
    code = "import fedapt\nfedapt.Config, fedapt.Run, fedapt.load, fedapt.train, fedapt.compare"
    assert modules_after(code).isdisjoint(HEAVY)


def test_functions_are_no_packages() -> None:
    assert isinstance(fedapt.train, FunctionType)
    assert isinstance(fedapt.compare, FunctionType)


def test_settings_come_from_a_file_then_overrides_then_names(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[train]\nrounds = 2\nlr = 0.5\nseed = 7\n")
    config = read_run_settings(path, "images", {"rounds": 4}, ["train.rounds=3", "train.lr=0.25"])
    assert (config.train.rounds, config.train.lr, config.train.seed) == (4, 0.25, 7)
    assert config.data.root == str(Path("images").resolve())
    assert read_run_settings({"train.rounds": 5}, None, {}).train.rounds == 5
    base = read_config(None, ["train.rounds=6", "data.class_names.mug=cup"])
    assert read_run_settings(base, None, {"validation": 0.1, "method": None}).train.rounds == 6
    assert read_run_settings(base, None, {}).data.class_names == {"mug": "cup"}


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"round": 3}, "the unknown name 'round'"),
        ({"rounds": "3"}, "train.rounds = '3'; expected an integer from 1"),
        ({"method": "fedavg"}, "expected one of fedapt, "),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(named: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_run_settings(None, None, named)
    assert text in str(caught.value)
    assert "--" not in str(caught.value)


def test_a_path_of_a_clip_is_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_run_settings(None, None, {"model": "./clip"}).model.name == str(tmp_path / "clip")
    assert read_run_settings(None, None, {"model": "lite"}).model.name == "lite"


def test_what_is_no_run_is_refused(tmp_path: Path, tiny_run: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        fedapt.load(tmp_path)
    alone = tmp_path / "alone.safetensors"
    shutil.copy(tiny_run / "checkpoint.safetensors", alone)
    with pytest.raises(UsageError, match="data: found no folder, and the images of the run"):
        fedapt.load(alone).evaluate()
    with pytest.raises(UsageError, match="the unknown setting 'precison'; expected one of data, "):
        fedapt.load(tiny_run).export(tmp_path / "model.onnx", precison="fp16")


def test_a_method_of_this_process_cannot_take_a_name_that_is_taken() -> None:
    with pytest.raises(
        UsageError, match="the method 'fedapt': found an existing method of this name"
    ):
        fedapt.register_method("fedapt", fedapt.Method)
