"""A node's process: it takes messages from its server, and runs their tasks on its own images.

The process runs the fedapt that is installed on this machine. The server sends settings and
tensors, never code. CLIP, features and prompts stay in memory between messages.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from fedapt.core.errors import FederationError
from fedapt.core.report import Reporter
from fedapt.federation.flower.event_log import STATE
from fedapt.federation.flower.internals import build_message
from fedapt.federation.flower.network.connection import (
    Connection,
    NotJoined,
    Task,
    Unreachable,
)
from fedapt.federation.flower.network.content import decode, encode
from fedapt.federation.flower.settings import NodeSettings

_RETRY_S, _MAX_RETRY_S = 0.5, 5.0
_MEMORY = "memory.json"
_NODE = 2  # a node's number in its own messages; it has no effect


def run_node(folder: Path, settings: NodeSettings, wait_seconds: float, reporter: Reporter) -> None:
    """Take part until this process ends.

    Args:
        folder: folder of `node.toml`.
        wait_seconds: maximum time to wait for the server at the start.

    Raises:
        FederationError: the server cannot be reached, has another certificate, does not know this
            node's key, or another process runs this node.
    """
    folder = folder.resolve()
    with Connection(folder, settings) as connection:
        _join(connection, settings, wait_seconds, reporter)
        reporter.event("info", f"joined the server {settings.server}")
        with connection.busy():
            app = _build_app(folder, settings, reporter)
        worker = _Worker(connection, app, reporter)
        while True:
            worker.work(settings)


def _build_app(folder: Path, settings: NodeSettings, reporter: Reporter) -> ClientApp:
    # torch takes seconds to import, so a node joins first
    from fedapt.federation.flower.client_app import build_client_app
    from fedapt.federation.flower.memory import Memory
    from fedapt.federation.flower.node import Node

    node = Node(settings.to_party(folder), reporter, Memory(folder / STATE / _MEMORY))
    return build_client_app(lambda task, context: node, reporter)


def _join(
    connection: Connection, settings: NodeSettings, wait_seconds: float, reporter: Reporter
) -> None:
    """Retry until the server admits this node.

    Raises:
        FederationError: no admission within that time.
    """
    started, told, pause = time.monotonic(), "", _RETRY_S
    while True:
        try:
            connection.join()
        except Unreachable as error:
            if time.monotonic() - started >= wait_seconds:
                raise FederationError(
                    where=f"the server {settings.server}",
                    found=f"{error.reason}, for {wait_seconds:g} s",
                    expected="a server that admits this node",
                    next_step=error.next_step,
                ) from error
            if error.reason != told:
                told = error.reason
                reporter.event("warning", f"waiting for the server {settings.server}: {told}")
        else:
            return
        time.sleep(pause)
        pause = min(_MAX_RETRY_S, 1.5 * pause)


class _Worker:
    """Takes messages and answers them, one after another."""

    def __init__(self, connection: Connection, app: ClientApp, reporter: Reporter) -> None:
        self._connection, self._app, self._reporter = connection, app, reporter
        self._context = _remember(0)

    def work(self, settings: NodeSettings) -> None:
        """Take and answer one message, if there is one."""
        try:
            task = self._connection.take()
            if task is not None:
                self._do(task)
        except NotJoined:
            self._rejoin(settings, "it was started again")
        except Unreachable as error:
            self._rejoin(settings, error.reason)

    def _rejoin(self, settings: NodeSettings, reason: str) -> None:
        self._reporter.event("warning", f"lost the server {settings.server}: {reason}")
        _join(self._connection, settings, float("inf"), Reporter())
        self._reporter.event("info", f"joined the server {settings.server}")

    def _do(self, task: Task) -> None:
        if self._context.run_id != task.run:
            self._context = _remember(task.run)
        try:
            content = decode(task.body)
        except ValueError as error:
            self._reporter.event("error", f"a message that cannot be read: {error}")
            self._connection.reply(task, b"")
            return
        started = time.monotonic()
        with self._connection.busy():
            found = self._answer(task, content)
        seconds = time.monotonic() - started
        body = encode(found)
        if not self._connection.reply(task, body):
            self._reporter.event("warning", "the server no longer waits for this reply")
            return
        self._tell(task, found, len(body), seconds)

    def _answer(self, task: Task, content: RecordDict) -> RecordDict:
        """The reply to a message. An error in a message ends neither the node nor the round."""
        from fedapt.federation.flower.task import REFUSAL  # imports torch, which is loaded by now

        try:
            message = build_message(content, task.id, task.kind, task.group, task.run, _NODE)
            return self._app(message, self._context).content
        except Exception as error:
            self._reporter.event("error", traceback.format_exc())
            reason = f"{type(error).__name__}; the node's log says more"
            return RecordDict({REFUSAL: ConfigRecord({"reason": reason})})

    def _tell(self, task: Task, content: RecordDict, n_bytes: int, seconds: float) -> None:
        from fedapt.federation.flower.task import REFUSAL

        if task.kind.startswith("query") or REFUSAL in content:
            return
        images = content.metric_records.get("reply", MetricRecord()).get("images")
        values: dict[str, object] = {
            "round": int(task.group) if task.group.isdecimal() else 0,
            "bytes": n_bytes,
            "seconds": round(seconds, 2),
        }
        did = "evaluated" if task.kind.startswith("evaluate") else "trained"
        if task.kind.partition(".")[2]:
            did = task.kind.partition(".")[2]
        elif images is not None:
            values["images"] = images
            did += f" on {images:,} images"
        text = f"round {task.group}: {did}, sent {n_bytes / 1e6:.2f} MB, {seconds:.1f} s"
        self._reporter.event("info", text, **values)


def _remember(run_id: int) -> Context:
    """An empty context, in which a node keeps the state of a secure round."""
    return Context(run_id, _NODE, UserConfig(), RecordDict(), UserConfig())
