"""Files to run a deployment: container image, compose, systemd, an nginx example, the commands.

The templates are in `fedapt/federation/deploy`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import fedapt
import fedapt_runtime
from fedapt.core.files import write_text
from fedapt.federation.flower.settings import split_address

_TEMPLATES = Path(__file__).parents[1] / "deploy"
_WHEEL = f"fedapt-{fedapt.__version__}-py3-none-any.whl"
_RUNTIME_WHEEL = f"fedapt_runtime-{fedapt_runtime.__version__}-py3-none-any.whl"


def write_services(
    folder: Path, address: str, nodes: Mapping[str, str], classes: Sequence[str]
) -> None:
    """Write all files except settings, certificates and keys.

    Args:
        address: HOST:PORT of the server.
        nodes: name -> domain.

    Raises:
        FileError: the folder cannot be written.
    """
    host, port = split_address(address, folder)
    values = {"WHEEL": _WHEEL, "RUNTIME_WHEEL": _RUNTIME_WHEEL, "HOST": host, "PORT": str(port)}
    for name, path in (
        ("Dockerfile", "Dockerfile"),
        ("nginx.conf", "nginx.conf"),
        ("fedapt-server.service", "systemd/fedapt-server.service"),
        ("fedapt-node.service", "systemd/fedapt-node.service"),
    ):
        text = (_TEMPLATES / name).read_text("utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        write_text(folder / path, text)
    write_text(folder / "compose.yaml", _write_compose(list(nodes)))
    write_text(folder / "README.md", _write_readme(address, nodes, classes))


def _write_compose(nodes: Sequence[str]) -> str:
    services = {"server"}
    text = _COMPOSE + _service("server", "server", "server")
    for name in nodes:
        # the names of services and variables have fewer characters than those of nodes
        service = re.sub(r"[^a-z0-9]", "-", name.lower(), flags=re.ASCII)
        while service in services:
            service += "-node"
        services.add(service)
        variable = "IMAGES_" + service.replace("-", "_").upper()
        text += _service(service, "node --data /images", f"nodes/{name}")
        text += f"      - ${{{variable}:?the folder of the images}}:/images:ro\n"
    return text


def _service(name: str, command: str, folder: str) -> str:
    return _SERVICE.format(name=name, command=command, folder=folder, version=fedapt.__version__)


_COMPOSE = """\
# One machine, a container for each party. `docker compose build` needs the wheels that README.md
# names. FEDAPT_USER is the owner of this folder: "$(id -u):$(id -g)".
services:
"""
_SERVICE = """\
  "{name}":
    image: fedapt-federation:{version}
    build: .
    entrypoint: [fedapt, federation]
    command: {command} /federation
    user: ${{FEDAPT_USER:?the owner of this folder, such as 1000:1000}}
    network_mode: host
    restart: unless-stopped
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    volumes:
      - "./{folder}:/federation"
"""


def _write_readme(address: str, nodes: Mapping[str, str], classes: Sequence[str]) -> str:
    commands = "\n".join(
        f"    fedapt federation node nodes/{name}        # domain {domain}"
        for name, domain in nodes.items()
    )
    return f"""\
# A federation of {len(nodes)} nodes

Install the same version of fedapt on every machine. `make build` writes two wheels into `dist` in
the folder of fedapt. Copy them into `wheels` here. They are not on a package index.

    pip install 'wheels/{_RUNTIME_WHEEL}[cpu]' 'wheels/{_WHEEL}[flower,cpu]'

On the server, `{address}`, with the folder `server`:

    fedapt federation server server           # runs until you stop it
    fedapt federation train server            # in another terminal: trains and shows the progress

On each node, with only its own folder of `nodes`:

{commands}

`data` in a node's `node.toml` is the folder that holds DOMAIN/CLASS/IMAGES, with the classes

    {", ".join(classes)}

Nodes connect to this one port of the server. No other port is needed. Only the user that runs the
server can write to `server/state` and start training.

`systemd` has services. `compose.yaml` and `Dockerfile` run all parties in containers on one
machine:

    FEDAPT_USER=$(id -u):$(id -g) IMAGES_...=/path/of/images docker compose up --build --detach
    FEDAPT_USER=$(id -u):$(id -g) docker compose exec server fedapt federation train /federation

`nginx.conf` is an example of a proxy on the server's machine that ends TLS.

The certificates are for a trial and valid for a year. `server.key` and every `node.key` are secret:
copy each to its machine and delete it here. This command adds a node, also during training:

    fedapt federation add . NAME=DOMAIN
"""
