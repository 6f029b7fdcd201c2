"""The wheel of fedapt carries all its parts, and nothing of the tests."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
    "name",
    [
        "fedapt/model/lite/text_tower.safetensors",
        "fedapt/model/lite/text_apart.safetensors",
        "fedapt/model/lite/open_clip_config.json",
        "fedapt/model/lite/pretrain.json",
        "fedapt/demo/report.html.j2",
        "fedapt/py.typed",
        "fedapt_export/py.typed",
        "fedapt_export/head.py",
        "fedapt_export/web/static/main.js",
    ],
)
def test_it_has(names: list[str], name: str) -> None:
    assert name in names


def test_it_has_two_packages_and_no_tests(names: list[str]) -> None:
    tops = {Path(name).parts[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"fedapt", "fedapt_export"}
