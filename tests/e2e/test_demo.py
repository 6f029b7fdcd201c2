"""The demo as a newcomer runs it, and the page that it leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fedapt.cli.app import main
from tests.support.tiny import write_tiny_images

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
    assert page.count("<figure") == 4 * 7
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


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tiny_images(tmp_path / "root", 1, ("data", "photo"))
    before = sorted(root.rglob("*"))
    assert main(["demo", "--out", str(root)]) == 2
    said = capsys.readouterr().err
    assert f"{root}: found a folder with other files; expected a new folder" in said
    assert sorted(root.rglob("*")) == before


def test_a_new_folder_and_that_of_an_earlier_demo(tmp_path: Path) -> None:
    from fedapt.demo.run import check_out

    check_out(tmp_path / "new")
    check_out(tmp_path)
    (tmp_path / ".data.partial").mkdir()  # of a demo that was killed while it drew
    check_out(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ATTRIBUTION.md").touch()
    (tmp_path / "my.jsonl").touch()
    check_out(tmp_path)
