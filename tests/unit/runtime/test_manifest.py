"""The manifest: a round trip through JSON, and every way in which it can be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.manifest import SCHEMA, Manifest, parse_manifest
from fedapt_runtime.preprocess import Preprocessing


def make() -> Manifest:
    return Manifest(
        classes=("Bär", "dog"),
        domains=("day", "night"),
        preprocessing=Preprocessing(
            (32, 48), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bilinear", "squash"
        ),
        clip={"model": "ViT-B-32", "pretrained": "openai", "sha256": "ab" * 32},
        method="fedapt",
        rounds=7,
        temperature=0.01,
        mixing="exact",
        precision="fp32",
        opset=20,
        checkpoint_sha256="cd" * 32,
        parity={"agreement": 1.0, "batch_sizes": [1, 2]},
        versions={"fedapt": "0.1.0"},
    )


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(make().to_json()) | changes)


def test_round_trip() -> None:
    manifest = parse_manifest(make().to_json(), "model.onnx")
    assert manifest == make()
    assert manifest.classes == ("Bär", "dog")
    assert manifest.preprocessing.size == (32, 48)
    assert manifest.schema == SCHEMA == 1


def test_json_is_one_line_with_sorted_keys_and_the_same_every_time() -> None:
    text = make().to_json()
    assert "\n" not in text
    assert '"classes": ["Bär", "dog"]' in text
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert text == parse_manifest(text, "model.onnx").to_json()


def test_parity_and_versions_may_be_absent() -> None:
    fields = json.loads(make().to_json())
    del fields["parity"], fields["versions"]
    manifest = parse_manifest(json.dumps(fields), "model.onnx")
    assert (manifest.parity, manifest.versions) == ({}, {})


def test_no_manifest() -> None:
    with pytest.raises(
        ModelFileError, match=r"model\.onnx: found an ONNX file without a fedapt manifest; expected"
    ):
        parse_manifest(None, "model.onnx")


def test_a_field_of_a_later_version_is_left_out() -> None:
    assert parse_manifest(edited(colour="red"), "model.onnx") == make()
    with pytest.raises(ModelFileError, match="a manifest of schema 2"):
        parse_manifest(edited(colour="red", schema=2), "model.onnx")


@pytest.mark.parametrize("schema", [0, 2, 99, "1", None])
def test_another_schema(schema: object) -> None:
    with pytest.raises(
        ModelFileError,
        match=f"found a manifest of schema {schema!r}; expected schema 1. To do: install a",
    ):
        parse_manifest(edited(schema=schema), "model.onnx")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "JSONDecodeError"),
        (make().to_json()[:-20], "JSONDecodeError"),
        ("[]", "TypeError"),
        ("null", "TypeError"),
        ("{}", "KeyError: 'schema'"),
        ("[" * 200_000, "RecursionError"),
        (edited(preprocessing=None), "AttributeError"),
        (edited(preprocessing=[1, 2]), "AttributeError"),
        (edited(preprocessing={"mean": [0, 0, 0], "std": [1, 1, 1]}), "KeyError: 'size'"),
        (edited(preprocessing={"size": [8, 8]}), "TypeError: .*'mean' and 'std'"),
        (
            edited(preprocessing={"size": 8, "mean": [0], "std": [1], "resize_mode": "squash"}),
            "int",
        ),
        (edited(classes=None), "TypeError: classes is None"),
        (edited(classes=[]), "TypeError: classes is "),
        (edited(classes="ab"), "TypeError: classes is 'ab'"),
        (edited(domains=["a", 1]), "TypeError: domains is "),
        (edited(clip=None), "TypeError: clip is None"),
        (edited(clip={"sha256": 1}), "TypeError: clip is "),
        (edited(method=1), "TypeError: method is 1"),
        (edited(rounds=-1), "TypeError: rounds is -1"),
        (edited(rounds=True), "TypeError: rounds is True"),
        (edited(rounds=1.5), "TypeError: rounds is 1.5"),
        (edited(temperature=0), "TypeError: temperature is 0"),
        (edited(temperature=float("nan")), "TypeError: temperature is nan"),
        (edited(temperature="1"), "TypeError: temperature is '1'"),
        (edited(mixing=None), "TypeError: mixing is None"),
        (edited(precision=[]), "TypeError: precision is "),
        (edited(opset="20"), "TypeError: opset is '20'"),
        (edited(checkpoint_sha256=None), "TypeError: checkpoint_sha256 is None"),
        (edited(parity=[]), "TypeError: parity is "),
        (edited(versions={"a": 1}), "TypeError: versions is "),
        (edited(unknown=[]), "TypeError: unknown is "),
        (edited(content_sha256="xyz"), "TypeError: content_sha256 is 'xyz'"),
        (edited(domains=3), "TypeError"),
    ],
)
def test_damaged(text: str, reason: str) -> None:
    with pytest.raises(ModelFileError, match=rf"found a damaged manifest \(.*{reason}"):
        parse_manifest(text, "model.onnx")


@pytest.mark.parametrize(
    "key",
    [
        "checkpoint_sha256",
        "classes",
        "clip",
        "domains",
        "method",
        "mixing",
        "opset",
        "precision",
        "preprocessing",
        "rounds",
        "schema",
        "temperature",
    ],
)
def test_a_missing_key_is_named(key: str) -> None:
    fields = json.loads(make().to_json())
    del fields[key]
    with pytest.raises(ModelFileError, match=rf"found a damaged manifest \(.*'{key}'"):
        parse_manifest(json.dumps(fields), "model.onnx")


def test_preprocessing_that_we_lack_is_told_as_such() -> None:
    fields = json.loads(make().to_json())["preprocessing"] | {"interpolation": "lanczos"}
    with pytest.raises(ModelFileError, match="preprocessing: found interpolation 'lanczos'"):
        parse_manifest(edited(preprocessing=fields), "model.onnx")
