"""What doctor recommends."""

from __future__ import annotations

import sys

import pytest

from fedapt_runtime import doctor
from fedapt_runtime.doctor import Finding, recommend_on_x86


@pytest.mark.parametrize(
    ("machine", "is_there", "recommended"),
    [
        ("x86_64", False, True),
        ("AMD64", False, True),
        ("aarch64", False, False),
        ("x86_64", True, False),
    ],
)
def test_openvino_is_recommended_on_x86(
    monkeypatch: pytest.MonkeyPatch, machine: str, is_there: bool, recommended: bool
) -> None:
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    found = recommend_on_x86(Finding("OpenVINO", is_there, "none", "pip install it"))
    reason = " (recommended: on x86 the runtime uses the faster of both)"
    assert found.install == "pip install it" + reason * recommended


def test_llvmlite_is_recommended_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("llvmlite", "llvmlite.binding"):
        monkeypatch.setitem(sys.modules, module, None)
    (found,) = (finding for finding in doctor.examine() if finding.name == "llvmlite")
    assert not found.is_there
    assert found.detail.startswith("no usable llvmlite")
    assert found.install == (
        "pip install 'fedapt-runtime[vector]' (recommended: resizes images, with the same pixels)"
    )
