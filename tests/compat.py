"""The unit tests on other versions of Python, and with the lowest dependencies that are allowed.

    make compat

uv makes an environment for each case and finds the interpreters (`UV_PYTHON`, PATH, its own). The
lowest case has the lowest version of each direct dependency in both pyproject.toml. A case whose
interpreter or packages cannot be had is named, and the others run. What one library says of
another's deprecated names is no failure here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CASES = {
    "lowest": ("3.11", "lowest-direct"),
    "3.11": ("3.11", "highest"),
    "3.12": ("3.12", "highest"),
    "3.13": ("3.13", "highest"),
}
PACKAGES = ("./runtime[cpu,parquet]", ".[cpu,demo,flower,test]")


def run_case(folder: Path, version: str, resolution: str) -> str:
    """What went wrong, or an empty text."""
    python = folder / "bin/python"
    uv = [sys.executable, "-m", "uv"]
    steps = {
        f"no Python {version}": [*uv, "venv", "--quiet", "--python", version, str(folder)],
        "packages that cannot be installed": [
            *(*uv, "pip", "install", "--quiet", "--python", str(python)),
            *("--resolution", resolution, *PACKAGES),
        ],
        "failed tests": [
            *(str(python), "-m", "pytest", "-q", "-W", "default::DeprecationWarning"),
            *("tests/unit", *sys.argv[1:]),
        ],
    }
    # the packages of this tree, whatever the environment has installed
    paths = os.pathsep.join(str(ROOT / name) for name in ("", "export", "runtime"))
    environment = os.environ | {"PYTHONPATH": paths}
    for failure, command in steps.items():
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            return failure
    return ""


def main() -> None:
    failures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (version, resolution) in CASES.items():
            print(f"case {name}", flush=True)
            if failure := run_case(Path(folder) / name, version, resolution):
                failures[name] = failure
    if failures:
        sys.exit("; ".join(f"{name}: {failure}" for name, failure in failures.items()))


if __name__ == "__main__":
    main()
