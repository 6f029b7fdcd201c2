"""What may be imported by whom, and how fast the help is."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "open_clip",
    "timm",
    "onnx",
    "onnxruntime",
    "torchvision",
    "matplotlib",
    "flwr",
    "ray",
    "llvmlite",
)


def modules_after(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after `code`."""
    program = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {line.split(".")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["export", "--help"],
        ["data", "--help"],
        ["federation", "--help"],
        ["federation", "train", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"from fedapt.cli.app import main\nassert main({arguments!r}) == 0"
    assert modules_after(code).isdisjoint(HEAVY)


def test_the_core_and_the_runtime_import_no_torch() -> None:
    code = "import fedapt.core.config, fedapt.core.files, fedapt.core.records, fedapt_runtime.cli"
    assert modules_after(code).isdisjoint(HEAVY)


def test_the_local_engine_needs_no_flower() -> None:
    code = (
        "import fedapt.run.train, fedapt.run.session, fedapt.comparison.run, fedapt_export.doctor"
    )
    assert modules_after(code).isdisjoint(("flwr", "ray", "dp_accounting"))


def test_the_check_above_can_fail() -> None:
    assert "torch" in modules_after("import fedapt.model.prompt")


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    import fedapt
    import fedapt_runtime

    assert version("fedapt") == fedapt.__version__
    assert version("fedapt-runtime") == fedapt_runtime.__version__
