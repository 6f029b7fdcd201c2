"""The server that runs the application: its socket, TLS, signals and shutdown."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from fedapt_runtime.classifier import Classifier
from fedapt_runtime.errors import InputError, first_line
from fedapt_runtime.serve.app import create_app
from fedapt_runtime.serve.connections import Connections
from fedapt_runtime.serve.limits import MIB, Limits
from fedapt_runtime.serve.service import Service

__all__ = ["MIB", "Address", "Limits", "serve"]

_BACKLOG = 1024
_MAX_HEAD = 32 * 1024  # bytes of a request's line and headers
_RESERVED = 64  # open files of the process other than connections


@dataclass(frozen=True)
class Address:
    """The address of a server.

    Attributes:
        host: a name or an IP address of this machine.
        port: TCP port; 0 selects a free one.
        cert, key: PEM files for TLS; None for plain HTTP.
    """

    host: str
    port: int
    cert: Path | None = None
    key: Path | None = None


def serve(
    classifiers: dict[str, Classifier],
    address: Address,
    limits: Limits,
    *,
    tokens: tuple[bytes, ...],
    local: bool,
    web: Path | None,
    max_batch: int | None,
    max_delay_s: float,
    workers: int | None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer the accepted requests, and return.

    Args:
        classifiers: name -> classifier; the first is the default.
        address: host, port and TLS files.
        limits: limits of requests and connections.
        tokens, local, web: see `create_app`.
        max_batch, max_delay_s, workers: see `Service`.

    Raises:
        InputError: the address is in use or not of this machine, or TLS cannot use its files.
    """
    _raise_file_limit(limits.max_connections + _RESERVED)
    service = Service(
        classifiers, limits, max_batch=max_batch, max_delay_s=max_delay_s, workers=workers
    )
    connections = Connections(limits)
    app = create_app(service, tokens=tokens, local=local, web=web, connections=connections)
    config = uvicorn.Config(
        app,
        http=connections.protocol(),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(limits.header_s) + 1,
        timeout_graceful_shutdown=int(limits.drain_s),
        h11_max_incomplete_event_size=_MAX_HEAD,
        ssl_certfile=address.cert,
        ssl_keyfile=address.key,
        backlog=_BACKLOG,
    )
    _check_tls(config, address)
    listener = _listen(address)
    host, port = listener.getsockname()[:2]
    scheme = "http" if address.cert is None else "https"
    shown = f"[{host}]" if ":" in host else host
    print(f"serving at {scheme}://{shown}:{port}", file=sys.stderr, flush=True)
    # uvicorn raises the signal again after its shutdown; an orderly shutdown must exit with 0
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


def _check_tls(config: uvicorn.Config, address: Address) -> None:
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise InputError(
            where=f"{address.cert} and {address.key}",
            found=first_line(error),
            expected="a certificate chain and its private key without a passphrase, PEM",
            next_step="check the two files",
        ) from error


def _listen(address: Address) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=_BACKLOG)
    except OSError as error:
        is_name = isinstance(error, socket.gaierror)  # its numbers are not errno values
        raise InputError(
            where=f"{address.host}:{address.port}",
            found=first_line(error) if is_name else os.strerror(error.errno or 0),
            expected="an address of this machine and a free port",
            next_step="choose another address or port",
        ) from error


def _raise_file_limit(files: int) -> None:
    """Raise this process's limit of open files, as far as the system allows."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        raised = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
