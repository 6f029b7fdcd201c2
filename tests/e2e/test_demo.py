"""The demo as a newcomer runs it, and the page that it leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fedapt.cli.app import main

pytest.importorskip("matplotlib", reason="needs the extra `demo`")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    return out


def test_fedapt_beats_zero_shot_by_ten_points_in_the_runtimes_own_rows(demo: Path) -> None:
    def mean(name: str) -> float:
        right: dict[str, list[bool]] = {}
        for line in (demo / name).read_text("utf-8").splitlines():
            row = json.loads(line)
            *_, domain, label, _ = Path(row["path"]).parts
            right.setdefault(domain, []).append(label.replace("_", " ") == row["label"])
        assert len(right) == 4
        return sum(sum(r) / len(r) for r in right.values()) / 4

    assert mean("predictions.jsonl") > mean("zero_shot.jsonl") + 0.10


def test_the_page_needs_nothing_else(demo: Path) -> None:
    page = (demo / "report.html").read_text("utf-8")
    links = set(re.findall(r"""(?:src|href)=["']([^"']+)""", page))
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert "<script" not in page
    assert page.count("<svg") == 3
    assert page.count("<figure") == 4 * 10
    for domain in ("twemoji", "openmoji", "openmoji_line", "noto"):
        assert domain in page


def test_a_second_demo_goes_on_from_what_is_there(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = (demo / "run" / "checkpoint.safetensors").read_bytes()
    assert main(["demo", "--out", str(demo), "--json"]) == 0
    means = json.loads(capsys.readouterr().out)["mean"]
    assert means["fedapt"] > means["zero_shot"] + 0.10
    assert (demo / "run" / "checkpoint.safetensors").read_bytes() == checkpoint
