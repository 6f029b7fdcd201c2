"""model.onnx -> a folder of static files: a page that classifies on the visitor's own device.

    DIR/index.html  style.css  icon.svg  page.js  camera.js
                                             the page, which the service shares
    DIR/main.js  worker.js  decode.js  pixels.js  predict.js
                                             the code that runs the model
    DIR/bundle.json                          the model's manifest, size and hash
    DIR/model.onnx                           the model
    DIR/ort/                                 ONNX Runtime Web
    DIR/THIRD_PARTY.txt                      its licence
    DIR/sw.js                                the service worker, which caches all files

docs/browser.md describes how to serve the folder, and how the browser's results differ from the
runtime's.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedapt.core.files import claim_folder, hash_file, replace_file, write_bytes
from fedapt_export.web.runtime_files import (
    LICENCE,
    VERSION,
    WASM_FILES,
    WEBGPU_FILES,
)
from fedapt_runtime import Manifest
from fedapt_runtime.backends.model_checks import read_manifest
from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.onnx_file import check_content, open_onnx

MODEL = "model.onnx"
_LAST = "sw.js"  # browsers check it for a new version, so it is written after all other files


@dataclass(frozen=True)
class Bundle:
    """The files of a page and their sizes.

    Attributes:
        folder: the folder of the page.
        bytes: sizes of the parts `model`, `runtime` and `page` that a visitor without WebGPU
            downloads.
        gzip_bytes: the same sizes with gzip.
    """

    folder: Path
    bytes: dict[str, int]
    gzip_bytes: dict[str, int]


def write_bundle(model: Path, folder: Path, runtime: dict[str, bytes]) -> Bundle:
    """Write or update the page of a model.

    Args:
        model: an .onnx file that `fedapt export` wrote.
        folder: folder of the page; other files in it stay.
        runtime: files of ONNX Runtime Web, from `read_runtime_files`.

    Raises:
        ModelFileError: the file is missing, damaged or not a fedapt model, or it is above 2 GB.
        FileError: another job writes the folder, it cannot be written, or the disk is full.

    Example:
        >>> write_bundle(Path("model.onnx"), Path("site"), read_runtime_files("fp32")).folder
        PosixPath('site')
    """
    manifest = read_manifest(model)
    if manifest.weights is not None:
        raise ModelFileError(
            where=model,
            found="a model above 2 GB, in two files",
            expected="a model that a browser can hold",
            next_step="export a smaller CLIP, or this one with precision fp16",
        )
    check_content(model, open_onnx(model))
    described = _describe(model, manifest, webgpu=not runtime.keys().isdisjoint(WEBGPU_FILES))
    page = _read_page() | {"bundle.json": json.dumps(described, indent=1).encode()}
    page[_LAST] = _fill_in(page, runtime)
    with claim_folder(folder):
        for name, content in runtime.items():
            write_bytes(folder / "ort" / name, content)
        write_bytes(folder / "THIRD_PARTY.txt", LICENCE.encode())
        if not (folder / MODEL).exists() or not model.samefile(folder / MODEL):
            with replace_file(folder / MODEL) as temporary:
                shutil.copyfile(model, temporary)
        for name in sorted(page, key=lambda name: name == _LAST):
            write_bytes(folder / name, page[name])
    parts = {
        "model": [model.read_bytes()],
        "runtime": [runtime[name] for name in WASM_FILES],
        "page": list(page.values()),
    }
    return Bundle(
        folder,
        {part: sum(map(len, contents)) for part, contents in parts.items()},
        {part: sum(len(gzip.compress(c)) for c in contents) for part, contents in parts.items()},
    )


def _describe(model: Path, manifest: Manifest, *, webgpu: bool) -> dict[str, Any]:
    """The content of bundle.json, which the page reads."""
    return {
        "model": {
            "file": MODEL,
            "bytes": model.stat().st_size,
            "sha256": hash_file(model),
        },
        "onnxruntime_web": VERSION,
        "webgpu": webgpu,
        "manifest": json.loads(manifest.to_json()),
    }


def _read_page() -> dict[str, bytes]:
    """The page's files in the runtime, and the code that runs the model: name -> content."""
    folders = (files("fedapt_runtime") / "page", files("fedapt_export") / "web" / "static")
    return {file.name: file.read_bytes() for folder in folders for file in folder.iterdir()}


def _fill_in(page: dict[str, bytes], runtime: dict[str, bytes]) -> bytes:
    """The service worker with the version and the names of the files that it caches at once."""
    digest = hashlib.sha256()
    for content in (*page.values(), *runtime.values()):
        digest.update(hashlib.sha256(content).digest())
    small = " ".join(sorted(page.keys() - {_LAST}))
    text = page[_LAST].decode().replace("@VERSION@", digest.hexdigest()[:16])
    return text.replace("@FILES@", small).encode()
