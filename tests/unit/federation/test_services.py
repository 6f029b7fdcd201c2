"""What runs a deployment: units, image and proxy name commands, files and paths that there are."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import fedapt
import fedapt_runtime
from fedapt.cli.app import main
from fedapt.federation.flower.network import paths
from tests.unit.federation.test_compose import parse

INIT = ["--server", "federation.example.org:8443", "--classes", "mug,bike"]
INIT += ["--node", "berlin=photo"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert main(["federation", "init", str(tmp_path / "d"), *INIT]) == 0
    return tmp_path / "d"


def test_everything_is_installed_from_the_wheels_that_init_names(folder: Path) -> None:
    wheels = (
        f"fedapt-{fedapt.__version__}-py3-none-any.whl",
        f"fedapt_runtime-{fedapt_runtime.__version__}-py3-none-any.whl",
    )
    for name in ("README.md", "Dockerfile"):
        text = (folder / name).read_text()
        assert all(wheel in text for wheel in wheels)
        installs = [line for line in text.splitlines() if "[flower,cpu]" in line]
        assert installs
        assert all(".whl[flower,cpu]" in line for line in installs)
        assert "@" not in text.replace("federation.example.org", "")


@pytest.mark.parametrize("kind", ["server", "node"])
def test_units_run_fedapts_commands(folder: Path, kind: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(folder / f"systemd/fedapt-{kind}.service")
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    names, values = parse([Path(program).name, *arguments])
    assert names == ["fedapt", "federation", kind]
    assert unit["Service"]["ReadWritePaths"] == str(values["folder"])
    assert unit["Service"]["User"] == "fedapt"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_the_proxy_passes_what_nodes_ask_for_alone(folder: Path) -> None:
    text = (folder / "nginx.conf").read_text()
    assert "listen 8443 ssl;" in text
    assert "server_name federation.example.org;" in text
    assert re.findall(r"location (\S+) ", text) == ["/fedapt/", "/"]
    for path in (paths.JOIN, paths.TAKE, paths.SEEN, paths.REPLY):
        assert path.startswith("/fedapt/")
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s", text)
    assert int(seconds) > 2 * paths.TAKE_S
    (listen,) = re.findall(r"listen = \"(\S+)\"", text)
    (upstream,) = re.findall(r"    server (\S+);", text)
    assert listen == upstream == "127.0.0.1:8001"


def test_a_secure_federation_has_nodes_that_insist_on_it(tmp_path: Path) -> None:
    secure = ["-o", "federation.secure=true"]
    assert main(["federation", "init", str(tmp_path / "s"), *INIT, *secure]) == 0
    assert main(["federation", "add", str(tmp_path / "s"), "bern=photo"]) == 0
    for name in ("berlin", "bern"):
        table = tomllib.loads((tmp_path / "s/nodes" / name / "node.toml").read_text())
        assert table["secure"] is True
    assert main(["federation", "init", str(tmp_path / "p"), *INIT]) == 0
    assert "secure" not in (tmp_path / "p/nodes/berlin/node.toml").read_text()
