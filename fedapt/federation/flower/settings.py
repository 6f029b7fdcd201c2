"""The configuration files of a federation's server and nodes: `server.toml` and `node.toml`."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedapt.core.config import read_settings
from fedapt.core.declarations import Strict, setting
from fedapt.core.errors import ConfigError, UsageError
from fedapt.data.class_names import class_key
from fedapt.federation.flower.party import Party

# valid names of nodes and of domains
NAME = re.compile(r"\w[\w .@-]{0,99}")
_TOLD = "FEDAPT_INSECURE"


@dataclass(frozen=True)
class ServerSettings(Strict):
    """A federation's server; paths are relative to the file.

    Attributes:
        address: HOST:PORT that nodes connect to.
        classes: names in the order of the labels, as every node's folders have them.
        domains: domains that may take part; empty for any.
        min_nodes: number of connected nodes that training waits for.
        wait_seconds: maximum time to wait for them.
        settings: TOML file of the training, as for `fedapt train --config`.
        out: the run folder.
        authority, certificate, key: PEM files for TLS.
        nodes: folder with the public keys of the nodes that may connect, NAME.pub.
        insecure: plain HTTP, because TLS ends elsewhere. Nodes still sign with their keys.
        listen: HOST:PORT of this machine, if it differs from `address`, such as 0.0.0.0:8000.
    """

    address: str
    classes: tuple[str, ...]
    domains: tuple[str, ...] = ()
    min_nodes: int = setting(1, "connected nodes that training waits for", 1, 1_000_000)
    wait_seconds: float = setting(600.0, "maximum seconds to wait for the nodes", 0.0, 1e7)
    settings: str = "settings.toml"
    out: str = "run"
    authority: str = "authority.pem"
    certificate: str = "server.pem"
    key: str = "server.key"
    nodes: str = "nodes"
    insecure: bool = setting(False, "plain HTTP; nodes still sign with their keys")
    listen: str = ""


@dataclass(frozen=True)
class NodeSettings(Strict):
    """A node; paths are relative to the file. `Party` explains the other fields.

    Attributes:
        server: HOST:PORT of the server.
        authority: PEM file of the authority that signed the server's certificate.
        key: this node's private key.
        insecure: plain HTTP. The node still signs with its key.
        secure: takes part only in secure rounds.
        max_clip: maximum `federation.node_clip` that it accepts; 0 for any or none.
        min_noise: minimum `federation.node_noise` that it accepts.
    """

    server: str
    data: str
    domain: str
    name: str = ""
    model: str = ""
    pretrained: str = ""
    device: str = "cpu"
    authority: str = "authority.pem"
    key: str = "node.key"
    insecure: bool = setting(False, "plain HTTP; the node still signs with its key")
    secure: bool = setting(False, "take part only in secure rounds")
    max_clip: float = setting(0.0, "maximum `federation.node_clip`; 0 for any", 0.0, 1e9)
    min_noise: float = setting(0.0, "minimum `federation.node_noise`", 0.0, 1e6)

    def to_party(self, folder: Path) -> Party:
        """The node's images and CLIP; `folder` is that of the file."""
        names = ("name", "model", "pretrained", "device", "secure", "max_clip", "min_noise")
        others = {name: getattr(self, name) for name in names}
        return Party(folder / self.data, self.domain, **others)


def read_server(folder: Path) -> ServerSettings:
    """`server.toml`, checked.

    Raises:
        ConfigError: a wrong name or value, or an address that cannot be one.
        UsageError: no TLS on an address that other machines can reach.
    """
    path = folder / "server.toml"
    settings = read_settings(ServerSettings, path)
    split_address(settings.address, path)
    host, _ = split_address(settings.listen or settings.address, path)
    _check_encrypted(path, host, settings.insecure)
    check_classes(settings.classes, path)
    if not settings.insecure:
        _check_files(
            path,
            {name: folder / getattr(settings, name) for name in ("certificate", "key")},
        )
    return settings


def read_node(folder: Path) -> NodeSettings:
    """`node.toml`, checked.

    Raises:
        ConfigError: a wrong name or value, or an address that cannot be one.
        UsageError: no TLS to another machine.
    """
    path = folder / "node.toml"
    settings = read_settings(NodeSettings, path)
    host, _ = split_address(settings.server, path)
    _check_encrypted(path, host, settings.insecure)
    names = ("key",) if settings.insecure else ("authority", "key")
    _check_files(path, {name: folder / getattr(settings, name) for name in names})
    return settings


def check_classes(classes: Sequence[str], where: Path | str) -> None:
    """Refuse class names that are equal for the tokenizer.

    Raises:
        ConfigError: fewer than two names, equal names, or a name without a letter.
    """
    keys = list(map(class_key, classes))
    if len(keys) < 2 or len(set(keys)) < len(keys) or not all(keys):
        raise ConfigError(
            where=where,
            found=f"the classes {', '.join(map(ascii, classes)) or 'none'}",
            expected="two names or more, all different as the tokenizer reads them",
            next_step="use the class names of the nodes' folders",
        )


def split_address(address: str, where: Path | str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT.

    Raises:
        ConfigError: it is neither.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(
            where=where,
            found=f"the address {address!r}",
            expected="HOST:PORT, such as federation.example.org:8000",
            next_step="correct the address",
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_encrypted(path: Path, host: str, insecure: bool) -> None:
    if insecure and not is_loopback(host) and os.environ.get(_TOLD) != "1":
        raise UsageError(
            where=path,
            found=f"insecure = true on {host}, which other machines can reach",
            expected="TLS and keys outside this machine",
            next_step=f"remove it, or set {_TOLD}=1 if the network itself is encrypted",
        )


def _check_files(path: Path, files: Mapping[str, Path]) -> None:
    for name, file in files.items():
        if not file.is_file():
            raise ConfigError(
                where=path,
                found=f"{name} = {file.name}, which does not exist",
                expected="the file that `fedapt federation init` has written, or your own",
                next_step="copy the file there, or set another path",
            )
