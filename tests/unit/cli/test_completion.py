"""A shell completes commands and options."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fedapt.cli.app import app


@pytest.mark.parametrize(
    ("words", "expected", "absent"),
    [("fedapt tr", "train", "export"), ("fedapt export --hea", "--head-only", "--out")],
)
def test_bash_completes(words: str, expected: str, absent: str) -> None:
    environment = {
        "_FEDAPT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="fedapt")
    assert expected in result.output.splitlines()
    assert absent not in result.output


def test_help_offers_to_install_it() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output
