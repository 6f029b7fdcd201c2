"""A node goes on after a message that it cannot answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedapt.core.report import Reporter
from fedapt.federation.flower.network.connection import Connection, Task, Unreachable
from fedapt.federation.flower.network.content import decode, encode
from fedapt.federation.flower.network.paths import MESSAGE
from fedapt.federation.flower.node_process import _Worker


class Lines(Reporter):
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def event(self, level: str, text: str, **values: object) -> None:
        self.said.append((level, text))


class Server:
    """Gives messages, and keeps what it is answered."""

    def __init__(self, *tasks: Task) -> None:
        self._tasks = list(tasks)
        self.replies: list[bytes] = []

    def take(self) -> Task:
        return self._tasks.pop(0)

    def reply(self, task: Task, body: bytes) -> bool:
        self.replies.append(body)
        return True

    @contextmanager
    def busy(self) -> Iterator[None]:
        yield


def build_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if message.content.config_records["task"]["fails"]:
            raise RuntimeError("shapes of /home/of/a/hospital")
        return Message(RecordDict({"reply": MetricRecord({"images": 3})}), reply_to=message)

    return app


def task(kind: str, *, fails: bool) -> Task:
    body = encode(RecordDict({"task": ConfigRecord({"fails": fails})}))
    return Task("1", kind, "2", 7, body)


def test_a_message_that_cannot_be_answered_does_not_end_the_node() -> None:
    server = Server(
        task("train", fails=True),
        task("train.unknown", fails=False),
        task("no kind", fails=False),
        Task("1", "train", "2", 7, encode(RecordDict())),
        Task("1", "train", "2", 7, b"noise"),
        task("train", fails=False),
    )
    lines = Lines()
    worker = _Worker(server, build_app(), lines)  # type: ignore[arg-type]
    for _ in range(6):
        worker.work(SimpleNamespace())  # type: ignore[arg-type]
    reasons = [
        str(decode(reply).config_records["refusal"]["reason"]) for reply in server.replies[:4]
    ]
    assert reasons[0] == "RuntimeError; the node's log says more"
    assert all(reason.endswith("Error; the node's log says more") for reason in reasons)
    assert server.replies[4] == b""
    assert decode(server.replies[5]).metric_records["reply"]["images"] == 3
    levels = [level for level, _ in lines.said]
    assert levels == ["error"] * 5 + ["info"]
    assert "shapes of /home/of/a/hospital" in lines.said[0][1]  # on the node alone
    assert lines.said[5][1].startswith("round 2: trained on 3 images, sent ")


@pytest.mark.parametrize(
    "header",
    ["", "[]", "{}", '{"id": 1, "kind": "train", "group": "", "run": 1}', "\xff"],
)
def test_a_server_that_answers_something_else(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection.__new__(Connection)
    values: dict[str, Any] = {"status_code": 200, "headers": {MESSAGE: header}, "content": b""}
    monkeypatch.setattr(connection, "_ask", lambda path: SimpleNamespace(**values))
    with pytest.raises(Unreachable, match="an answer of another program"):
        connection.take()
    good = {"id": "1", "kind": "train", "group": "2", "run": 7}
    values["headers"] = {MESSAGE: json.dumps(good)}
    assert connection.take() == Task("1", "train", "2", 7, b"")
