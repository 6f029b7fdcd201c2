"""The files of a new deployment: a folder for the server and a folder for each node.

DIR/server/            server.toml settings.toml authority.pem server.pem server.key nodes/*.pub
DIR/server/app/        the Flower app, which only names fedapt's ServerApp and ClientApp
DIR/nodes/NAME/        node.toml authority.pem node.key
DIR/README.md          the commands; Dockerfile compose.yaml systemd/ nginx.conf (`services`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

import fedapt
from fedapt.core.config import Config, config_to_toml
from fedapt.core.errors import UsageError
from fedapt.core.files import make_folder, write_secret, write_text
from fedapt.federation.flower.certificates import draw_node_key, issue_certificates
from fedapt.federation.flower.services import write_services
from fedapt.federation.flower.settings import (
    NAME,
    check_classes,
    is_loopback,
    split_address,
)

APP = "app"


@dataclass(frozen=True)
class Deployment:
    """The description of a deployment, from which its files are written.

    Attributes:
        address: HOST:PORT of the server, as nodes reach it.
        classes: names in the order of the labels.
        nodes: name -> domain.
        data: ROOT of the images on every node.
        config: settings of the training.
    """

    address: str
    classes: tuple[str, ...]
    nodes: Mapping[str, str]
    data: str
    config: Config


def write_deployment(folder: Path, deployment: Deployment) -> None:
    """Write all files of a new deployment; all checks come before the first file.

    The folder is created completely or not at all.

    Raises:
        FileError: the folder exists, another job creates it, or it cannot be written.
        ConfigError: an invalid address, or classes that are equal for the tokenizer.
        UsageError: a node's name or domain that the server would refuse.
    """
    host, _ = split_address(deployment.address, "server")
    check_classes(deployment.classes, "classes")
    for name, domain in deployment.nodes.items():
        _check_node(name, domain)
    hosts = [host, "127.0.0.1", "localhost"] if is_loopback(host) else [host]
    certificates = issue_certificates(list(dict.fromkeys(hosts)))
    table = {
        "address": deployment.address,
        "classes": list(deployment.classes),
        "min_nodes": len(deployment.nodes),
    }
    secure = deployment.config.federation.secure
    with make_folder(folder) as new:
        server = new / "server"
        write_text(server / "server.toml", tomli_w.dumps(table))
        write_text(server / "settings.toml", config_to_toml(deployment.config))
        write_text(server / "authority.pem", certificates.authority.decode())
        write_text(server / "server.pem", certificates.certificate.decode())
        write_secret(server / "server.key", certificates.key)
        write_text(server / APP / "pyproject.toml", _APP.format(version=fedapt.__version__))
        for name, domain in deployment.nodes.items():
            write_node(new, name, domain, deployment.address, deployment.data, secure=secure)
        write_services(new, deployment.address, deployment.nodes, deployment.classes)


def write_node(
    folder: Path, name: str, domain: str, address: str, data: str, *, secure: bool = False
) -> None:
    """Write a node's folder, and its public key into the server's folder.

    Args:
        secure: the node takes part only in secure runs.

    Raises:
        UsageError: the node exists, or the server would refuse its name or domain.
        FileError: another job creates it, or the folder cannot be written.
    """
    _check_node(name, domain)
    node = folder / "nodes" / name
    if node.exists():
        raise _refuse(name, "a node of that name")
    private, public = draw_node_key()
    table: dict[str, object] = {"server": address, "data": data, "domain": domain, "name": name}
    if secure:
        table["secure"] = True
    authority = (folder / "server" / "authority.pem").read_text("utf-8")
    with make_folder(node) as new:
        write_text(new / "node.toml", tomli_w.dumps(table))
        write_text(new / "authority.pem", authority)
        write_secret(new / "node.key", private)
        # written before the folder, so that the command can be repeated after a kill
        write_text(folder / "server" / "nodes" / f"{name}.pub", public.decode() + "\n")


def _check_node(name: str, domain: str) -> None:
    if not NAME.fullmatch(name):
        raise _refuse(name, "a name that no folder should have")
    if not NAME.fullmatch(domain):
        raise _refuse(name, f"the domain {domain!r}")


def _refuse(name: str, found: str) -> UsageError:
    return UsageError(
        where=f"the node {name!r}",
        found=found,
        expected="a new name, and a domain, of letters, digits, space, dot, @, - or _",
        next_step="choose another name or domain",
    )


_APP = """\
# What `flwr run` submits: the names of fedapt's own apps, which are installed with fedapt.
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedapt-federation"
version = "{version}"
description = "Federated adaptive prompt tuning of CLIP"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedapt"

[tool.flwr.app.components]
serverapp = "fedapt.run.deployment:server_app"
clientapp = "fedapt.federation.flower.supernode_app:client_app"

[tool.flwr.app.config]
"""
