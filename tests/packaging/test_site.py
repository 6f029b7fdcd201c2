"""The documentation builds as a site: every page, link and docstring of the API is found."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    specification = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {"index", "contributing", "changelog", "runtime", *pages} <= {
        page.stem for page in tmp_path.glob("*.html")
    }
    assert "register_method" in (tmp_path / "api.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("source", "link", "turned"),
    [
        ("README.md", "[a](docs/export.md#heads)", "[a](export.md#heads)"),
        ("README.md", "[a](CONTRIBUTING.md#tests)", "[a](contributing.md#tests)"),
        ("README.md", "[a](examples)", "`examples`"),
        ("docs/gpu.md", "[a](../README.md)", "[a](index.md)"),
        (
            "docs/gpu.md",
            "[a](models.md), [b](https://a.org/b)",
            "[a](models.md), [b](https://a.org/b)",
        ),
        ("runtime/README.md", "[a](../docs/unknown.md)", "[a](unknown.md)"),
        ("README.md", "![a](docs/accuracy.svg)", "![a](accuracy.svg)"),
        ("README.md", "[a](docs/absent.md)", "[a](docs/absent.md)"),
    ],
)
def test_links_lead_to_pages_of_the_site(
    hooks: ModuleType, source: str, link: str, turned: str
) -> None:
    assert hooks.turn_links(link, source) == turned
