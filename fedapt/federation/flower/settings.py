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
        min_nodes: connected nodes without which training does not begin.
        wait_seconds: how long they are waited for.
        settings: TOML file of the training, as of `fedapt train --config`.
        out: the run folder.
        authority, certificate, key: PEM files for TLS.
        nodes: folder with the public keys of the nodes that may connect, NAME.pub.
        insecure: without TLS, because it ends elsewhere; nodes show their keys all the same.
        listen: HOST:PORT of this machine, where it is not `address`, such as 0.0.0.0:8000.
    """

    address: str
    classes: tuple[str, ...]
    domains: tuple[str, ...] = ()
    min_nodes: int = setting(1, "connected nodes that training waits for", 1, 1_000_000)
    wait_seconds: float = setting(600.0, "how long it waits for them", 0.0, 1e7)
    settings: str = "settings.toml"
    out: str = "run"
    authority: str = "authority.pem"
    certificate: str = "server.pem"
    key: str = "server.key"
    nodes: str = "nodes"
    insecure: bool = setting(False, "plain HTTP; nodes show their keys all the same")
    listen: str = ""


@dataclass(frozen=True)
class NodeSettings(Strict):
    """A node; paths are relative to the file. `Party` explains the other fields.

    Attributes:
        server: HOST:PORT of the server.
        authority: PEM file of who signed the server's certificate.
        key: this node's private key.
        insecure: without TLS; the node shows its key all the same.
        secure: takes part in secure rounds alone, whatever the server's settings say.
        max_clip: largest `federation.node_clip` of a run that it takes part in; 0 for any or none.
        min_noise: smallest `federation.node_noise` of such a run.
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
    insecure: bool = setting(False, "plain HTTP; the node shows its key all the same")
    secure: bool = setting(False, "take part in secure rounds alone")
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
        UsageError: unencrypted on an address that others can reach.
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
        UsageError: unencrypted to another machine.
    """
    path = folder / "node.toml"
    settings = read_settings(NodeSettings, path)
    host, _ = split_address(settings.server, path)
    _check_encrypted(path, host, settings.insecure)
    names = ("key",) if settings.insecure else ("authority", "key")
    _check_files(path, {name: folder / getattr(settings, name) for name in names})
    return settings


def check_classes(classes: Sequence[str], where: Path | str) -> None:
    """Refuse class names that the tokenizer reads alike.

    Raises:
        ConfigError: fewer than two, one twice, or one without a letter.
    """
    keys = list(map(class_key, classes))
    if len(keys) < 2 or len(set(keys)) < len(keys) or not all(keys):
        raise ConfigError(
            where=where,
            found=f"the classes {', '.join(map(ascii, classes)) or 'none'}",
            expected="two names or more, all different as the tokenizer reads them",
            next_step="name the classes as the nodes' folders do",
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
            next_step="correct it",
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
            next_step=f"remove it, or set {_TOLD}=1 where the network itself is encrypted",
        )


def _check_files(path: Path, files: Mapping[str, Path]) -> None:
    for name, file in files.items():
        if not file.is_file():
            raise ConfigError(
                where=path,
                found=f"{name} = {file.name}, which does not exist",
                expected="the file that `fedapt federation init` has made, or your own",
                next_step="copy it there, or name another",
            )
