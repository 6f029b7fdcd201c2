"""What the server's operator asks of the SuperLink: admit a node, start a run, how is it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedapt.core.errors import FederationError
from fedapt.federation.flower.settings import ServerSettings


class Control:
    """A connection to the SuperLink's control interface.

    Raises:
        OSError: nobody answers at the address.
        FederationError: the SuperLink refuses.
    """

    def __init__(self, folder: Path, settings: ServerSettings) -> None:
        self._client = ControlHttpClient.from_server_address(
            settings.address,
            insecure=settings.insecure,
            root_certificates=None
            if settings.insecure
            else (folder / settings.authority).read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
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
        if isinstance(error, httpx.TransportError):
            raise ConnectionError(str(error)) from error
        if isinstance(error, httpx.HTTPStatusError):
            told = FlowerError.from_json(error.response.text)
            raise FederationError(
                where="the server",
                found=told.message if told else str(error),
                expected="an answer",
                next_step="see the server's own messages",
            ) from error

    def register(self, public_key: bytes, name: str) -> None:
        """Let the node with this key connect; again, where it may already."""
        try:
            self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))
        except httpx.HTTPStatusError as error:
            told = FlowerError.from_json(error.response.text)
            if told is None or told.code != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                raise

    def start_run(self, app: Path) -> int:
        """Submit the Flower app in this folder; its run's number."""
        content = build_fab_from_disk(app)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        return int(self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id)

    def find_status(self, run_id: int) -> tuple[str, str]:
        """Status of a run and what it ended with, such as ("finished", "completed")."""
        runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        status = runs[run_id].status
        return str(status.status), str(status.sub_status)
