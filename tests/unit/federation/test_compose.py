"""compose.yaml of a new deployment: by the specification's schema, with commands that there are."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner, Result

from fedapt.cli.app import app, main

NODES = {"berlin": "photo", "St. Gallen": "photo", "st- gallen": "scan", "Köln": "scan"}
NODES |= {"server": "scan", "a@b": "scan"}


@pytest.fixture
def compose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    arguments = ["--server", "federation.example.org:8000", "--classes", "mug,bike"]
    for name, domain in NODES.items():
        arguments += ["--node", f"{name}={domain}"]
    assert main(["federation", "init", str(tmp_path / "d"), *arguments]) == 0
    return tmp_path / "d" / "compose.yaml"


def read(path: Path) -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))["services"]
    return services


def check(path: Path) -> Result:
    """By the specification's own schema, which the package brings."""
    return CliRunner().invoke(
        check_jsonschema, ["--builtin-schema", "vendor.compose-spec", str(path)]
    )


def test_it_is_as_the_specification_has_it(compose: Path) -> None:
    done = check(compose)
    assert done.exit_code == 0, done.output
    compose.write_text(compose.read_text().replace("  restart: unless-stopped", "  restarts: no"))
    done = check(compose)
    assert done.exit_code == 1
    assert "'restarts' was unexpected" in done.output


def test_every_party_has_a_service_of_its_own(compose: Path) -> None:
    services = read(compose)
    assert list(services) == [
        "server",
        "berlin",
        "st--gallen",
        "st--gallen-node",
        "k-ln",
        "server-node",
        "a-b",
    ]
    folders, variables = set(), set()
    for service in services.values():
        folder, *images = service["volumes"]
        source, _, target = folder.partition(":")
        assert target == "/federation"
        assert (compose.parent / source / f"{Path(source).parts[0].rstrip('s')}.toml").is_file()
        folders.add(source)
        variables.update(image.partition(":?")[0] for image in images)
    assert folders == {"./server", *(f"./nodes/{name}" for name in NODES)}
    assert len(variables) == len(NODES)
    assert all(v.removeprefix("${").replace("_", "").isalnum() and v.isascii() for v in variables)
    assert "${IMAGES_BERLIN" in variables


def test_the_commands_are_fedapts(compose: Path) -> None:
    for name, service in read(compose).items():
        command = [*service["entrypoint"], *shlex.split(service["command"])]
        program, values = parse(command)
        assert program == ["fedapt", "federation", "server" if name == "server" else "node"]
        assert str(values["folder"]) == "/federation"
        assert str(values.get("data")) == ("None" if name == "server" else "/images")


def parse(command: list[str]) -> tuple[list[str], Mapping[str, Any]]:
    """A command line by fedapt's own parser: the program's names, and its values."""
    found: Any = typer.main.get_command(app)
    names, rest = command[:1], command[1:]
    while hasattr(found, "commands"):
        found = found.commands[rest[0]]
        names, rest = [*names, rest[0]], rest[1:]
    with found.make_context(" ".join(names), rest) as context:
        return names, dict(context.params)
