"""The files of a new deployment: a folder for the server and one for each node, ready to be copied.

DIR/server/            server.toml settings.toml authority.pem server.pem server.key nodes/*.pub
DIR/server/app/        the Flower app: it names fedapt's ServerApp and ClientApp, and no more
DIR/nodes/NAME/        node.toml authority.pem node.key
DIR/compose.yaml       all of it in containers
DIR/README.md          the commands
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

import fedapt
from fedapt.core.config import Config, config_to_toml
from fedapt.core.errors import UsageError
from fedapt.core.files import write_secret, write_text
from fedapt.federation.flower.certificates import draw_node_key, issue_certificates
from fedapt.federation.flower.settings import (
    NAME,
    check_classes,
    is_loopback,
    split_address,
)

APP = "app"


@dataclass(frozen=True)
class Deployment:
    """What a deployment is made for.

    Attributes:
        address: HOST:PORT of the server, as nodes reach it.
        classes: names in the order of the labels.
        nodes: name -> domain.
        data: ROOT of the images on every node.
        config: of the training.
    """

    address: str
    classes: tuple[str, ...]
    nodes: Mapping[str, str]
    data: str
    config: Config


def write_deployment(folder: Path, deployment: Deployment) -> None:
    """Write everything; `folder` is new. What is wrong is refused before the first file.

    Raises:
        FileError: the folder cannot be written.
        ConfigError: the address is none, or the classes cannot be told apart.
        UsageError: a node's name or domain that the server would turn away.
    """
    host, _ = split_address(deployment.address, "--server")
    check_classes(deployment.classes, "--classes")
    for name, domain in deployment.nodes.items():
        _check_node(name, domain)
    hosts = [host, "127.0.0.1", "localhost"] if is_loopback(host) else [host]
    certificates = issue_certificates(list(dict.fromkeys(hosts)))
    server = folder / "server"
    table = {
        "address": deployment.address,
        "classes": list(deployment.classes),
        "least_nodes": len(deployment.nodes),
    }
    write_text(server / "server.toml", tomli_w.dumps(table))
    write_text(server / "settings.toml", config_to_toml(deployment.config))
    write_text(server / "authority.pem", certificates.authority.decode())
    write_text(server / "server.pem", certificates.certificate.decode())
    write_secret(server / "server.key", certificates.key)
    write_text(server / APP / "pyproject.toml", _APP.format(version=fedapt.__version__))
    for name, domain in deployment.nodes.items():
        write_node(folder, name, domain, deployment.address, deployment.data)
    write_text(folder / "compose.yaml", _write_compose(list(deployment.nodes)))
    write_text(folder / "README.md", _write_readme(deployment))


def write_node(folder: Path, name: str, domain: str, address: str, data: str) -> None:
    """A node's folder, and its public key in the server's.

    Raises:
        UsageError: there is such a node, or the server would turn its name or domain away.
        FileError: the folder cannot be written.
    """
    _check_node(name, domain)
    node = folder / "nodes" / name
    if node.exists():
        raise _refuse(name, "a node of that name")
    private, public = draw_node_key()
    table = {"server": address, "data": data, "domain": domain, "name": name}
    write_text(node / "node.toml", tomli_w.dumps(table))
    write_text(node / "authority.pem", (folder / "server" / "authority.pem").read_text("utf-8"))
    write_secret(node / "node.key", private)
    # last: from here on the server lets it in
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
        next_step="choose another",
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


def _write_compose(nodes: Sequence[str]) -> str:
    services = {"server"}
    text = _COMPOSE + _SERVICE.format(name="server", command="server", folder="server")
    for name in nodes:
        # the names of services and variables have fewer characters than those of nodes
        service = re.sub(r"[^a-z0-9]", "-", name.lower(), flags=re.ASCII)
        while service in services:
            service += "-node"
        services.add(service)
        variable = "IMAGES_" + service.replace("-", "_").upper()
        command, folder = "node --data /images", f"nodes/{name}"
        text += _SERVICE.format(name=service, command=command, folder=folder)
        text += f"      - ${{{variable}:?the folder of the images}}:/images:ro\n"
    return text


_COMPOSE = """\
# One machine, every party in a container of its own; `image` is any that has fedapt[flower,cpu].
services:
"""
_SERVICE = """\
  "{name}":
    image: ${{FEDAPT_IMAGE:?an image with fedapt installed}}
    entrypoint: [fedapt, federation]
    command: {command} /federation
    network_mode: host
    restart: unless-stopped
    volumes:
      - "./{folder}:/federation"
"""


def _write_readme(deployment: Deployment) -> str:
    nodes = "\n".join(
        f"    fedapt federation node nodes/{name}        # domain {domain}"
        for name, domain in deployment.nodes.items()
    )
    return f"""\
# A federation of {len(deployment.nodes)} nodes

Every machine has fedapt installed, in the same version: `pip install 'fedapt[flower,cpu]'`.

On the server, `{deployment.address}`, with the folder `server`:

    fedapt federation server server           # runs until it is stopped
    fedapt federation train server            # in another terminal: trains, and shows how it goes

On each node, with its own folder of `nodes` and nobody else's:

{nodes}

`data` in a node's `node.toml` is the folder that holds DOMAIN/CLASS/IMAGES, with the classes

    {", ".join(deployment.classes)}

The certificates are for a trial and valid for a year. `server.key` and every `node.key` are secret:
copy each to its machine and delete it here. A further node, also while training goes on:

    fedapt federation add . NAME=DOMAIN
"""
