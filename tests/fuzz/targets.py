"""What is fuzzed: each border as a function of a file, with whole files to begin with."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from fedapt.core.config import read_config
from fedapt.core.records import read_records
from fedapt.model.checkpoint import load_checkpoint
from fedapt_runtime import Preprocessing
from fedapt_runtime.backends.engine_file import read_engine_file
from fedapt_runtime.errors import ImageError
from fedapt_runtime.head import read_head
from fedapt_runtime.manifest import METADATA_KEY, parse_manifest
from fedapt_runtime.onnx_file import check_content, open_onnx
from fedapt_runtime.sources import Member, find_images
from fedapt_runtime.unknown import read_signal
from tests.support.manifests import make_manifest

WEIGHTS = np.arange(4, dtype="<f4").tobytes()
SMALL = Preprocessing((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Target:
    """One border.

    Attributes:
        name: of the folder of its corpus.
        use: reads a file; may raise ReportedError and nothing else.
        seeds: whole files, suffix -> bytes.
        wraps: of a seed with JSON inside, (its text, a function that puts other text in its place).
    """

    name: str
    use: Callable[[Path], object]
    seeds: dict[str, bytes]
    wraps: Callable[[bytes], tuple[str, Callable[[str], bytes]]] | None = None


def _pack(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _open_safetensors(data: bytes) -> tuple[str, Callable[[str], bytes]]:
    """Header and metadata as one document: the metadata's text is opened too."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"][METADATA_KEY] = json.loads(header["__metadata__"][METADATA_KEY])

    def close(text: str) -> bytes:
        marker = f'"{METADATA_KEY}": '
        start = text.find(marker) + len(marker)
        stop = _end_of_value(text, start)
        if start >= len(marker) and stop > start and text[start] == "{":
            text = text[:start] + json.dumps(text[start:stop]) + text[stop:]
        raw = text.encode("utf-8", "surrogatepass")
        return len(raw).to_bytes(8, "little") + raw + data[end:]

    return json.dumps(header), close


def _end_of_value(text: str, start: int) -> int:
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return text.find("}}", start) + 1


def _plain_json(data: bytes) -> tuple[str, Callable[[str], bytes]]:
    return data.decode(), lambda text: text.encode("utf-8", "surrogatepass")


def _head() -> bytes:
    classes, domains, width = ("mug", "pen", "cap"), ("a", "b"), 4
    shapes = {
        "text_banks": [width, 6],
        "bank_bias": [2, 3],
        "gram": [2, 6],
        "adaptive_network": [width, 2],
        "router_bias": [2],
        "router_takes_unit": [],
        "router_standardised": [],
        "temperature": [],
        "logit_scale": [],
    }
    header: dict[str, Any] = {
        "__metadata__": {METADATA_KEY: make_manifest(classes, domains).to_json()}
    }
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    return _pack(header, np.full(end // 4, 0.5, "<f4").tobytes())


def _description() -> bytes:
    fields = {
        "flavour": "tensorrt",
        "library": {"name": "tensorrt", "version": "11.4.0.106"},
        "compute_capabilities": ["sm86", "sm89"],
        "batch": [2, 8, 16],
        "onnx_sha256": "",
        "engine_sha256": _hash(b"plan"),
        "manifest": json.loads(make_manifest(("a", "b"), ("c",)).to_json()),
    }
    return json.dumps(fields).encode()


def _model() -> bytes:
    """An ONNX file whose weights are in `model.data`."""
    weights = {"file": "model.data", "bytes": len(WEIGHTS), "sha256": _hash(WEIGHTS)}
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    places = {"location": weights["file"], "offset": "0", "length": weights["bytes"]}
    for key, value in places.items():
        tensor.external_data.add(key=key, value=str(value))
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [output], [tensor]))
    manifest = replace(make_manifest(("a", "b"), ("c",)), weights=weights)
    onnx.helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    return bytes(model.SerializeToString())


def _use_model(path: Path) -> None:
    path.with_name("model.data").write_bytes(WEIGHTS)
    found = open_onnx(path)
    parse_manifest(found.metadata.get(METADATA_KEY), path)
    check_content(path, found)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _images() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 47, 3), dtype=np.uint8)
    grey = pixels[..., 0]
    made = {
        **{kind: Image.fromarray(pixels) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")},
        "PPM": Image.fromarray(grey),
        "deep.PNG": Image.fromarray(grey.astype("u2") * 257),
        "deep.TIFF": Image.fromarray(grey.astype("u2") * 257),
        "int.TIFF": Image.fromarray(grey.astype("i4")),
        "float.TIFF": Image.fromarray(grey.astype("f4") / 255),
        "palette.PNG": Image.fromarray(pixels).quantize(9),
    }
    files = {}
    for name, image in made.items():
        stream = io.BytesIO()
        image.save(stream, name.rpartition(".")[2])
        files[f"{name}.img"] = stream.getvalue()
    return files


def _archives() -> dict[str, bytes]:
    names = ["a.jpg", "k/ä.png", "notes.txt", "__MACOSX/a.jpg"]
    files = {}
    methods = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}
    for name, method in methods.items():
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for member in names:
                archive.writestr(zipfile.ZipInfo(member), b"x" * 90, method)
            link = zipfile.ZipInfo("link.jpg")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "a.jpg")
        files[f"{name}.zip"] = stream.getvalue()
    for suffix, mode in ((".tar", "w:"), (".tgz", "w:gz"), (".tar.xz", "w:xz")):
        for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode=mode, format=kind) as solid:  # type: ignore[call-overload]
                for member in [*names, "d/" * 60 + "long.jpg"]:
                    info = tarfile.TarInfo(member)
                    info.size = 90
                    solid.addfile(info, io.BytesIO(b"x" * 90))
                info = tarfile.TarInfo("link.jpg")
                info.type, info.linkname = tarfile.SYMTYPE, "a.jpg"
                solid.addfile(info)
            files[f"{kind}{suffix}"] = stream.getvalue()
    return files


def _lists() -> dict[str, bytes]:
    names = ["a.jpg", "b c.png", "z.zip::k/ä.jpg", "file:///x%20y.jpg"]
    text = "".join(f"{name}\r\n" for name in names)
    files = {
        "plain.txt": text.encode(),
        "utf16.txt": text.encode("utf-16"),
        "print0.lst": b"".join(name.encode() + b"\0" for name in names),
        "rows.jsonl": "".join(json.dumps({"path": n}) + "\n" for n in names).encode(),
        "rows.csv": ("label,path\r\n" + "".join(f'x,"{n}"\r\n' for n in names)).encode(),
    }
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return files
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({"path": names}), stream)
    return files | {"rows.parquet": stream.getvalue()}


def _use_manifest(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    manifest = parse_manifest(text, path)
    manifest.describe()
    manifest.to_json()
    if manifest.unknown is not None:
        read_signal(manifest, path)


def _use_description(path: Path) -> None:
    engine = path.with_name("model.engine")
    engine.write_bytes(b"plan")
    path.replace(path.with_name("model.engine.json"))
    read_engine_file(engine)


def _use_sources(path: Path) -> None:
    for found in find_images([path]):
        if isinstance(found, Member):
            with suppress(ImageError):  # a row
                found.read()


def _use_records(path: Path) -> None:
    read_records(path)


TOML = b"""[train]
rounds = 3
lr = 0.1
method = "fedapt"
[data.class_names]
back_pack = "rucksack"
[federation]
secure = false
"""
RECORDS = b'{"round": 1, "loss": 0.5}\n{"round": 2, "loss": 0.25, "accuracy": {"a": 0.5}}\n'


def make_targets(checkpoint: bytes) -> dict[str, Target]:
    """All of them, by name.

    Args:
        checkpoint: a whole one.
    """
    manifest = make_manifest(("a", "b"), ("c",)).to_json().encode()
    targets = (
        Target("checkpoint", load_checkpoint, {".safetensors": checkpoint}, _open_safetensors),
        Target("head", read_head, {".safetensors": _head()}, _open_safetensors),
        Target("manifest", _use_manifest, {".json": manifest}, _plain_json),
        Target("model", _use_model, {".onnx": _model()}),
        Target("description", _use_description, {".json": _description()}, _plain_json),
        Target("image", SMALL.load, _images()),
        Target("archive", _use_sources, _archives()),
        Target("list", _use_sources, _lists()),
        Target("toml", read_config, {".toml": TOML}),
        Target("records", _use_records, {".jsonl": RECORDS}),
    )
    return {target.name: target for target in targets}


NAMES = (
    "checkpoint",
    "head",
    "manifest",
    "model",
    "description",
    "image",
    "archive",
    "list",
    "toml",
    "records",
)
