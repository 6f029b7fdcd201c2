"""The files of ONNX Runtime Web that a bundle needs, from its npm package.

The files belong to another project (MIT) and have 14 MB or more, so neither this repository nor the
wheel contains them. Each file is checked against the hash of the version that the page needs.

Source: onnxruntime.ai, "Deploying ONNX Runtime Web", which lists the files.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

from fedapt.core.errors import DependencyError, FileError, UsageError
from fedapt.core.files import cache_folder, replace_file, scratch_folder
from fedapt.core.report import Reporter

VERSION = "1.30.0"
PRECISIONS = ("fp32", "fp16", "int8", "fp16-weights")
_PACKAGE = f"onnxruntime-web@{VERSION}"
_TIMEOUT_S = 300
# name in the package's folder `dist` -> SHA-256
WASM_FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": (
        "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b"
    ),
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
WEBGPU_FILES = {
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": (
        "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28"
    ),
    "ort-wasm-simd-threaded.asyncify.wasm": (
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da"
    ),
}
LICENCE = f"""\
The folder `ort` holds files of ONNX Runtime Web {VERSION}, unchanged.

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def read_runtime_files(
    precision: str, package: Path | None = None, reporter: Reporter | None = None
) -> dict[str, bytes]:
    """The files that a model of this precision needs: name -> content.

    Args:
        precision: precision of the model; int8 needs no WebGPU files, because WebGPU has no kernels
            for int8 products.
        package: the npm package, unpacked or as `npm pack` writes it; None uses the package in the
            cache, and npm fetches it if it is not there.
        reporter: receives a message before npm runs.

    Raises:
        UsageError: browsers cannot compute this precision.
        DependencyError: npm is missing or cannot fetch the package.
        FileError: the package cannot be read, lacks a file, or is of another version.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            where="web",
            found=f"a model in {precision}",
            expected=", ".join(PRECISIONS),
            next_step="choose one of these; int8 is the smallest",
        )
    names = WASM_FILES if precision == "int8" else WASM_FILES | WEBGPU_FILES
    package = package or _fetch_package(reporter or Reporter())
    read = _read_folder if package.is_dir() else _read_archive
    try:
        files = read(package, names)
    except (OSError, KeyError, tarfile.TarError) as error:
        raise _refuse(package, f"a package that cannot be read ({error})") from error
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != names[name]:
            raise _refuse(package, f"a dist/{name} with other content")
    return files


def _read_folder(package: Path, names: dict[str, str]) -> dict[str, bytes]:
    return {name: (package / "dist" / name).read_bytes() for name in names}


def _read_archive(package: Path, names: dict[str, str]) -> dict[str, bytes]:
    files = {}
    with tarfile.open(package) as archive:
        for name in names:
            member = archive.extractfile(f"package/dist/{name}")
            if member is None:
                raise KeyError(f"dist/{name} is not a file")
            files[name] = member.read()
    return files


def _fetch_package(reporter: Reporter) -> Path:
    """The package in the cache; npm fetches it if it is not there."""
    cached = cache_folder() / f"onnxruntime-web-{VERSION}.tgz"
    if cached.is_file():
        return cached
    npm = shutil.which("npm")
    if npm is None:
        raise _cannot_fetch("no npm on this machine")
    reporter.message(f"npm fetches {_PACKAGE}, 33 MB, into {cached.parent}")
    with scratch_folder() as scratch:
        command = [npm, "pack", _PACKAGE, "--ignore-scripts", "--pack-destination", str(scratch)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd=scratch
            )
        except subprocess.TimeoutExpired as error:
            raise _cannot_fetch(f"no answer from npm within {_TIMEOUT_S} s") from error
        if done.returncode != 0 or not (scratch / cached.name).is_file():
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            raise _cannot_fetch(f"npm's error {' '.join(lines[:2])!r}")
        with replace_file(cached) as temporary:
            shutil.copyfile(scratch / cached.name, temporary)
    return cached


def _cannot_fetch(found: str) -> DependencyError:
    return DependencyError(
        where=f"the npm package {_PACKAGE}",
        found=found,
        expected="npm and its registry, or the package itself",
        next_step=f"run `npm pack {_PACKAGE}` on a machine with npm, and pass the file",
    )


def _refuse(package: Path, found: str) -> FileError:
    return FileError(
        where=package,
        found=found,
        expected=f"the npm package {_PACKAGE}, unpacked or as .tgz",
        next_step=f"run `npm pack {_PACKAGE}`, and pass the file",
    )
