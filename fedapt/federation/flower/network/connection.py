"""A node's connection: signed requests to its server, and the meaning of each failure."""

from __future__ import annotations

import json
import secrets
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from fedapt.core.errors import FederationError
from fedapt.federation.flower.network.keys import fingerprint, read_private_key, sign
from fedapt.federation.flower.network.paths import JOIN, MESSAGE, REPLY, SEEN, TAKE, TAKE_S
from fedapt.federation.flower.settings import NodeSettings

_E = TypeVar("_E", bound=BaseException)
_TASK = {"id": str, "kind": str, "group": str, "run": int}
_SEEN_EVERY_S = 8.0
_TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=TAKE_S + 35.0)


class Unreachable(Exception):
    """The server does not answer, or does not admit this node now; a later try may succeed."""

    def __init__(self, reason: str, next_step: str) -> None:
        super().__init__(reason)
        self.reason, self.next_step = reason, next_step


class NotJoined(Unreachable):
    """The server does not know this process, because one of the two was restarted."""


@dataclass(frozen=True)
class Task:
    """A message that has arrived: see `mailbox.Letter`."""

    id: str
    kind: str
    group: str
    run: int
    body: bytes


class Connection:
    """A node's requests. They raise `Unreachable` if a later try may succeed.

    Args:
        folder: folder of `node.toml`.

    Raises:
        FederationError: no usable key, another certificate, or another process with the key.
    """

    def __init__(self, folder: Path, settings: NodeSettings) -> None:
        self._settings = settings
        self._key = read_private_key(folder / settings.key)
        self._instance = secrets.token_hex(16)
        tls = True if settings.insecure else _trust(folder / settings.authority)
        scheme = "http" if settings.insecure else "https"
        self._client = httpx.Client(
            base_url=f"{scheme}://{settings.server}",
            verify=tls,
            timeout=_TIMEOUT,
            trust_env=False,  # ignore proxies of the environment: the node connects directly
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def join(self) -> None:
        """Register this process as the node."""
        self._ask(JOIN)

    def take(self) -> Task | None:
        """The next message; None if none arrives within `TAKE_S`."""
        response = self._ask(TAKE)
        if response.status_code == 204:
            return None
        try:
            values = json.loads(response.headers[MESSAGE])
            if any(type(values[name]) is not kind for name, kind in _TASK.items()):
                raise TypeError("another kind of value")
            return Task(**values, body=response.content)
        except (KeyError, TypeError, ValueError) as error:
            raise Unreachable("an answer of another program", _CHECK_ADDRESS) from error

    def reply(self, task: Task, body: bytes) -> bool:
        """Send the answer to a message; False if the server no longer waits for it."""
        return self._ask(REPLY + task.id, body).status_code == 204

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Send signs of life to the server while the block runs."""
        done = threading.Event()

        def tell() -> None:
            while not done.wait(_SEEN_EVERY_S):
                try:
                    self._ask(SEEN)
                except (Unreachable, FederationError):
                    continue  # `reply` handles this error

        thread = threading.Thread(target=tell, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _ask(self, path: str, body: bytes = b"") -> httpx.Response:
        try:
            response = self._client.post(
                path, content=body, headers=sign(self._key, path, self._instance, body)
            )
        except httpx.HTTPError as error:
            if (refused := _find(error, ssl.SSLCertVerificationError)) is not None:
                raise FederationError(
                    where=f"the server {self._settings.server}",
                    found=f"an untrusted TLS certificate ({refused.verify_message})",
                    expected=f"one for this address, signed by {self._settings.authority}",
                    next_step="copy the server's authority.pem here, and check the address",
                ) from error
            cause = _find(error, OSError)
            reason = getattr(cause, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(f"no answer ({reason})", _CHECK_ADDRESS) from error
        return self._check(response, path)

    def _check(self, response: httpx.Response, path: str) -> httpx.Response:
        status, text = response.status_code, response.text[:300] if response.is_error else ""
        if status in (200, 204) or (status == 410 and path.startswith(REPLY)):
            return response
        if status == 404:
            raise NotJoined("it was started again", _CHECK_ADDRESS)
        if status == 403:
            name = fingerprint(self._key.public_key())
            raise Unreachable(
                f"it does not know this node's key {name}",
                "ask the server's operator to put this node's .pub file into `nodes`",
            )
        if status == 409:
            raise FederationError(
                where=f"the server {self._settings.server}",
                found=text,
                expected="one process for each node",
                next_step="stop one of the processes, or add a node with `fedapt federation add`",
            )
        if status == 413:
            raise FederationError(
                where=f"the server {self._settings.server}",
                found=f"a reply that the server refused: {text}",
                expected="a reply of the size of the model",
                next_step="install the same version of fedapt on server and nodes",
            )
        raise Unreachable(f"HTTP status {status} {text}".strip(), _CHECK_ADDRESS)


_CHECK_ADDRESS = "start the server first, and check the address and the firewall"


def _trust(authority: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise FederationError(
            where=authority,
            found=getattr(error, "reason", None) or str(error),
            expected="the certificate of the server's authority, PEM",
            next_step="copy the server's authority.pem here",
        ) from error


def _find(error: BaseException | None, kind: type[_E]) -> _E | None:
    """The first error of this class among an error and its causes."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None
