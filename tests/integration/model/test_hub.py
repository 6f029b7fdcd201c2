"""Weights from a hub, through Hugging Face's client, against a server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedapt.model.backbone import Backbone

_CLIENT = Path(__file__).parents[2] / "support" / "hub_client.py"


def load(folder: Path, cache: Path, *cases: str) -> list[dict[str, Any]]:
    """What came of each case, in a process with an endpoint and a cache of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, str(_CLIENT), str(folder), *cases],
        env=kept
        | {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
        | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def test_first_use_then_the_cache_without_the_hub(
    tiny_clip: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    cases = ("org/good", "org/none", "stop", "org/good", "org/none")
    first, absent, cached, unreachable = load(tiny_clip, tmp_path / "cache", *cases)
    assert first["sha256"] == tiny_backbone.sha256
    assert absent["exit_code"] == 4
    assert "model hf-hub:org/none: found " in absent["error"]
    assert cached["sha256"] == tiny_backbone.sha256
    assert unreachable["exit_code"] == 4
    assert "does not answer (" in unreachable["error"]
    assert "and its cache has no such files" in unreachable["error"]
    assert f"cache {tmp_path / 'cache'} (HF_HUB_CACHE)" in unreachable["error"]


def test_a_hub_that_is_silent_is_asked_once(tiny_clip: Path, tmp_path: Path) -> None:
    (result,) = load(tiny_clip, tmp_path / "cache", "hang", "org/good")
    assert result["requests"] == ["HEAD /"]
    assert "does not answer" in result["error"]


def test_a_download_that_breaks_off_goes_on(
    tiny_clip: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    cut, short = load(tiny_clip, tmp_path / "cache", "org/cut", "org/short")
    assert cut["sha256"] == tiny_backbone.sha256
    sent = [request for request in cut["requests"] if "GET" in request and "model.saf" in request]
    assert len(sent) == 2
    assert short["exit_code"] == 4  # it breaks off again and again
    assert "model hf-hub:org/short: found no usable weights (" in short["error"]


def test_a_download_that_falls_silent_goes_on(
    tiny_clip: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    (result,) = load(tiny_clip, tmp_path / "cache", "org/stall")
    assert result["sha256"] == tiny_backbone.sha256
    sent = [r for r in result["requests"] if r.startswith("GET") and "model.saf" in r]
    assert len(sent) == 2


def test_a_download_of_another_hash_is_refused_and_removed(
    tiny_clip: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    wrong, again = load(tiny_clip, tmp_path / "cache", "org/wrong", "org/wrong")
    assert wrong["exit_code"] == 4
    digest = hashlib.sha256((tiny_clip / "open_clip_model.safetensors").read_bytes()).hexdigest()
    assert "models--org--wrong: found a download of hash " in wrong["error"]
    assert f"which was removed; expected the hub's hash {digest[:12]}" in wrong["error"]
    assert again["sha256"] == tiny_backbone.sha256


@pytest.mark.parametrize("cache", ["file", "file/cache"])
def test_a_cache_that_cannot_be_written_is_told(
    tiny_clip: Path, tmp_path: Path, cache: str
) -> None:
    (tmp_path / "file").touch()
    (result,) = load(tiny_clip, tmp_path / cache, "org/good")
    assert result["exit_code"] == 4
    assert "found no usable weights (" in result["error"]
