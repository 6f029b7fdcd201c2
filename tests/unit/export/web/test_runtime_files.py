"""Where the files of ONNX Runtime Web come from; npm is a stand-in."""

from __future__ import annotations

import hashlib
import stat
import tarfile
from pathlib import Path

import pytest

from fedapt.core.errors import DependencyError, FileError, UsageError
from fedapt.core.files import cache_folder
from fedapt_export.web import runtime_files
from fedapt_export.web.runtime_files import VERSION, read_runtime_files

CONTENTS = {"a.mjs": b"module", "a.wasm": b"wasm"}
HASHES = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}


@pytest.fixture(autouse=True)
def small_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = hashlib.sha256(b"gpu").hexdigest()
    monkeypatch.setattr(runtime_files, "WASM_FILES", HASHES)
    monkeypatch.setattr(runtime_files, "WEBGPU_FILES", {"g.wasm": gpu})
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def make_package(folder: Path, **changed: bytes) -> Path:
    dist = folder / "package" / "dist"
    dist.mkdir(parents=True)
    for name, content in (CONTENTS | {"g.wasm": b"gpu"}).items():
        (dist / name).write_bytes(changed.get(name.replace(".", "_"), content))
    return dist.parent


def pack(package: Path) -> Path:
    archive = package.parent / "package.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(package, "package")
    return archive


def install_npm(folder: Path, script: str) -> None:
    path = folder / "bin" / "npm"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_folder_and_an_archive_give_the_same(tmp_path: Path) -> None:
    package = make_package(tmp_path)
    assert read_runtime_files("int8", package) == CONTENTS
    assert read_runtime_files("int8", pack(package)) == CONTENTS
    assert read_runtime_files("fp32", package) == CONTENTS | {"g.wasm": b"gpu"}


def test_another_version_is_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path, a_wasm=b"another")
    with pytest.raises(
        FileError, match=r"found a dist/a\.wasm with other content; expected the npm package onnx"
    ):
        read_runtime_files("int8", package)


@pytest.mark.parametrize("damage", ["missing file", "no archive", "no such file"])
def test_a_damaged_package_is_refused(tmp_path: Path, damage: str) -> None:
    package = make_package(tmp_path)
    if damage == "missing file":
        (package / "dist" / "a.mjs").unlink()
    elif damage == "no archive":
        package = tmp_path / "x.tgz"
        package.write_bytes(b"no archive")
    else:
        package = tmp_path / "nowhere.tgz"
    with pytest.raises(FileError, match="a package that cannot be read"):
        read_runtime_files("int8", package)


def test_an_archive_without_the_file_is_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path)
    (package / "dist" / "a.mjs").unlink()
    with pytest.raises(FileError, match=r"a package that cannot be read.*a\.mjs"):
        read_runtime_files("int8", pack(package))


def test_browsers_have_no_bfloat16() -> None:
    with pytest.raises(UsageError, match="found a model in bf16; expected fp32, fp16, int8"):
        read_runtime_files("bf16")


def test_npm_fetches_it_once(tmp_path: Path) -> None:
    archive = pack(make_package(tmp_path))
    name = f"onnxruntime-web-{VERSION}.tgz"
    told = tmp_path / "told"
    install_npm(tmp_path, f'echo "$@" >> "{told}"\n/bin/cp "{archive}" "$5/{name}"')
    for _ in range(2):
        assert read_runtime_files("int8") == CONTENTS
    assert (cache_folder() / name).is_file()
    (line,) = told.read_text().splitlines()
    assert line.startswith(f"pack onnxruntime-web@{VERSION} --ignore-scripts --pack-destination")


def test_without_npm_the_error_says_what_to_do() -> None:
    with pytest.raises(DependencyError, match="found no npm on this machine") as caught:
        read_runtime_files("int8")
    assert f"run `npm pack onnxruntime-web@{VERSION}` on a machine with npm" in str(caught.value)


def test_npms_error_is_told(tmp_path: Path) -> None:
    install_npm(tmp_path, "echo 'npm error code ENOTFOUND' >&2\nexit 1")
    with pytest.raises(DependencyError, match="npm error code ENOTFOUND"):
        read_runtime_files("int8")
    assert not list(cache_folder().glob("*.tgz"))
