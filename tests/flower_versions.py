"""The tests of federations on the oldest, the middle and the newest version of Flower's range.

    make flower-versions

Each version lies in a folder before the environment's own one; what it needs is the environment's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

VERSIONS = ("1.38.0", "1.40.0", "1.42.0")
# the simulation's Ray has to be of the version that Flower names, which is the environment's alone
TESTS = (
    "tests/unit/federation",
    "tests/unit/run/test_deployment.py",
    "tests/e2e/test_federation.py",
    "-k",
    "not flowers_simulation and not flowers_own_control",
)


def main() -> None:
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for version in VERSIONS:
            place = Path(folder) / version
            install = ["install", "--quiet", "--no-deps", "--target", place, f"flwr=={version}"]
            subprocess.run([sys.executable, "-m", "pip", *install], check=True)
            paths = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
            environment = os.environ | {"PYTHONPATH": paths}
            print(f"Flower {version}", flush=True)
            command = [sys.executable, "-m", "pytest", "-q", *TESTS, *sys.argv[1:]]
            if subprocess.run(command, env=environment).returncode:
                failed.append(version)
    if failed:
        sys.exit(f"tests failed on Flower {', '.join(failed)}")


if __name__ == "__main__":
    main()
