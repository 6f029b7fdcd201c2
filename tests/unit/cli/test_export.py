"""The last line of a report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedapt.cli.export import show_verdict


def test_a_verdict_names_the_file_the_share_and_the_minimum(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parity: Any = SimpleNamespace(agreement=0.9921, images=126)
    show_verdict(Path("model.onnx"), parity, 0.98)
    assert capsys.readouterr().out == (
        "passed: model.onnx computes the results of its checkpoint "
        "(99.21 % of 126 images keep their class, min 98 %)\n"
    )
