"""A node at the server's door: is it there, is it the right one, does it let this node in.

Flower's SuperNode ends with one message for all of these. It is also kept out for a minute where a
process with the same key has died, because the server takes that one to be still connected; whoever
holds the key may say that it is not.

Source: flwr.supernode.fleet_http_connection.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedapt.core.errors import FederationError
from fedapt.core.files import write_text
from fedapt.core.report import Reporter
from fedapt.federation.flower.refusals import fingerprint
from fedapt.federation.flower.settings import NodeSettings, split_address

_RETRY_S = 2.0
_SEAT = "node_id"


def wait_for_admission(
    folder: Path, state: Path, settings: NodeSettings, wait_seconds: float, reporter: Reporter
) -> None:
    """Until the server answers, with a certificate to be trusted, and knows this node's key.

    Args:
        folder: of `node.toml`.
        state: where this node keeps its number.

    Raises:
        FederationError: another certificate, or not within that time.
    """
    started, told = time.monotonic(), ""
    while True:
        try:
            _shake_hands(folder, settings)
            if settings.insecure or _is_admitted(folder, state, settings):
                return
            public = fingerprint(read_private_key(folder / settings.key).public_key())
            reason = f"it does not know this node's key {public}, or another process connects with"
            reason += " it"
            next_step = "have the server's operator put this node's .pub file into `nodes`"
        except ssl.SSLError as error:
            verdict = getattr(error, "verify_message", "") or error.reason or str(error)
            raise FederationError(
                where=f"the server {settings.server}",
                found=f"no TLS certificate that this node trusts ({verdict})",
                expected=f"one for this address, signed by {settings.authority}",
                next_step="copy the server's authority.pem here, and check the address",
            ) from error
        except (OSError, httpx.TransportError) as error:
            reason = f"no answer ({getattr(error, 'strerror', None) or error})"
            next_step = "start the server first, and check address and firewall"
        if time.monotonic() - started >= wait_seconds:
            raise FederationError(
                where=f"the server {settings.server}",
                found=f"{reason}, for {wait_seconds:g} s",
                expected="a server that lets this node in",
                next_step=next_step,
            )
        if reason != told:
            reporter.message(f"waiting for the server {settings.server}: {reason}")
            told = reason
        time.sleep(_RETRY_S)


def _shake_hands(folder: Path, settings: NodeSettings) -> None:
    host, port = split_address(settings.server, folder)
    with socket.create_connection((host, port), timeout=10.0) as connection:
        if not settings.insecure:
            trusted = ssl.create_default_context(cafile=str(folder / settings.authority))
            with trusted.wrap_socket(connection, server_hostname=host):
                pass


def _is_admitted(folder: Path, state: Path, settings: NodeSettings) -> bool:
    """Whether the server knows this node's key; its seat is free afterwards."""
    private = read_private_key(folder / settings.key)
    public = private.public_key()
    seat = state / _SEAT
    with FleetHttpClient.from_server_address(
        settings.server,
        False,
        (folder / settings.authority).read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private, public),
        ],
    ) as client:
        if seat.is_file() and (number := seat.read_text("ascii").strip()).isdigit():
            _leave(client, int(number))
        try:
            activated = client.ActivateNode(
                ActivateNodeRequest(
                    public_key=public_key_to_bytes(public),
                    heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL,
                )
            )
        except httpx.HTTPStatusError:
            return False
        write_text(seat, str(activated.node_id))
        _leave(client, activated.node_id)
    return True


def _leave(client: FleetHttpClient, node_id: int) -> None:
    # an error: it was not connected, or is another server's number
    with suppress(httpx.HTTPStatusError):
        client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A node's private key.

    Raises:
        FederationError: it is none that Flower can use.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("no key of an elliptic curve")
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise FederationError(
            where=path,
            found=str(error) or type(error).__name__,
            expected="a private key as `fedapt federation init` writes it",
            next_step="copy the node's own node.key here",
        ) from error
    return key
