"""Waiting for nodes: who is missing is told by name."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict, UserConfig

from fedapt.cli.federation.train import find_notice
from fedapt.core.config import Config
from fedapt.core.errors import FederationError
from fedapt.core.report import Reporter
from fedapt.data.partition import ClientInfo
from fedapt.federation.flower import registry as registry_module
from fedapt.federation.flower.client_app import REFUSAL, REPLY, build_client_app
from fedapt.federation.flower.internals import set_identity, set_message_id
from fedapt.federation.flower.registry import NodeRegistry
from fedapt.federation.flower.task import Plan
from fedapt.federation.flower.watch import Watch

set_identity(1)

PLAN = Plan(Config(), ("a", "b"), "0" * 64, 0)
NODES = {11: "berlin", 12: "bern", 13: "brno"}
ANSWERS = {11: {REPLY: {"domain": "photo", "name": "berlin"}}, 13: {REFUSAL: {"reason": "old"}}}


class StillGrid:
    """berlin is ready, bern never answers, brno is refused; prague does not connect."""

    def __init__(self) -> None:
        self._asked: dict[str, Message] = {}
        self.messages: list[Message] = []

    def name_nodes(self) -> Mapping[int, str]:
        return NODES

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            assert message.metadata.message_type == MessageType.QUERY
            self.messages.append(message)
            number = str(message.metadata.dst_node_id)
            set_message_id(message, number)
            self._asked[number] = message
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = []
        for number in message_ids:
            if (values := ANSWERS.get(int(number))) and number in self._asked:
                records = {name: ConfigRecord(value) for name, value in values.items()}
                found.append(Message(RecordDict(records), reply_to=self._asked.pop(number)))
        return found


def register(folder: Path, grid: StillGrid, watch: Watch, *allowed: str) -> NodeRegistry:
    return NodeRegistry(folder / "nodes.json", grid, grid.name_nodes, PLAN, watch, allowed)


def test_who_is_missing_is_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(registry_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    live = tmp_path / "live.jsonl"
    registered = {"berlin", "bern", "brno", "prague"}
    registry = register(tmp_path, StillGrid(), Watch(Reporter(), live))
    with pytest.raises(FederationError) as caught:
        registry.wait(3, 25.0, lambda: registered)
    assert caught.value.found == "1 nodes (berlin); brno: old"
    assert caught.value.expected == "3 (min_nodes) within 25 s"
    events = [json.loads(line) for line in live.read_text().splitlines()]
    assert [e["event"] for e in events] == ["joined", "turned away", "waiting", "waiting"]
    text = "waiting for nodes: 1 of 3 ready; not connected yet: prague; getting ready: bern"
    assert find_notice(events[2]) == text
    assert (events[2]["unseen"], events[2]["preparing"]) == (["prague"], ["bern"])
    assert find_notice(events[1]) == "turned away: brno: old"
    assert find_notice(events[0]) == ""


def test_nodes_without_keys_may_be_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_TELL_S", -1.0)
    monkeypatch.setitem(NODES, 12, "")
    live = tmp_path / "live.jsonl"
    registry = register(tmp_path, StillGrid(), Watch(Reporter(), live))
    with pytest.raises(FederationError):
        registry.wait(3, 0.0, lambda: {"berlin", "bern", "brno", "prague"})
    texts = [find_notice(json.loads(line)) for line in live.read_text().splitlines()]
    assert texts[-1] == "waiting for nodes: 1 of 3 ready"


def test_nothing_is_told_where_nobody_is_missing(tmp_path: Path) -> None:
    live = tmp_path / "live.jsonl"
    registry = register(tmp_path, StillGrid(), Watch(Reporter(), live))
    registry.wait(1, 25.0, lambda: pytest.fail("nobody has been waited for"))
    assert [member.name for member in registry.members] == ["berlin"]
    assert "waiting" not in live.read_text()


def test_a_node_that_goes_and_comes_back_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been started again, with other images; who still owes an answer is not."""
    grid, live = StillGrid(), tmp_path / "live.jsonl"
    registry = register(tmp_path, grid, Watch(Reporter(), live))
    assert registry.connected() == {"berlin": 11}
    with monkeypatch.context() as patch:
        for number in (11, 12):
            patch.delitem(NODES, number)
        assert registry.connected() == {}
    assert registry.connected() == {"berlin": 11}
    assert [m.metadata.dst_node_id for m in grid.messages] == [11, 12, 13, 11]


def test_a_node_that_was_there_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been started again; one that stays away costs one wait."""
    now, back = [0.0], [5.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] >= back[0]:
            monkeypatch.setitem(NODES, 11, "berlin")

    monkeypatch.setattr(registry_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(registry_module.time, "sleep", sleep)
    registry = register(tmp_path, StillGrid(), Watch(Reporter()))
    registry.wait(1, 25.0)
    clients = [ClientInfo(0, "berlin", 0, 0)]
    assert registry.find_nodes(clients) == {0: 11}
    assert now[0] == 0.0
    monkeypatch.delitem(NODES, 11)
    assert registry.find_nodes(clients) == {0: 11}
    assert 5.0 <= now[0] < 6.0
    monkeypatch.delitem(NODES, 11)
    back[0] = 1e9
    assert registry.find_nodes(clients) == {}
    assert 35.0 <= now[0] < 37.0
    before = now[0]
    assert registry.find_nodes(clients) == {}
    assert now[0] == before
    # and again, once it has been there
    monkeypatch.setitem(NODES, 11, "berlin")
    assert registry.find_nodes(clients) == {0: 11}
    monkeypatch.delitem(NODES, 11)
    assert registry.find_nodes(clients) == {}
    assert now[0] >= before + 30.0
    monkeypatch.setitem(NODES, 11, "berlin")


def test_a_node_is_told_what_the_server_has_against_it(tmp_path: Path) -> None:
    grid = StillGrid()
    live = tmp_path / "live.jsonl"
    watch = Watch(Reporter(), live)
    registry = register(tmp_path, grid, watch, "scan")
    registry.connected()
    (told,) = [m for m in grid.messages if REFUSAL in m.content.config_records]
    assert told.metadata.dst_node_id == 11  # brno has said itself what is wrong with it
    assert told.content.config_records[REFUSAL]["reason"] == "the unknown domain 'photo'"
    assert registry.members == []


def test_a_node_says_what_the_server_has_against_it() -> None:
    said = []

    class Lines(Reporter):
        def event(self, level: str, text: str, **values: object) -> None:
            said.append((level, text))

    app = build_client_app(lambda task, context: pytest.fail("there is nothing to do"), Lines())
    told = RecordDict({REFUSAL: ConfigRecord({"reason": "the unknown domain 'photo'"})})
    message = Message(told, 11, MessageType.QUERY)
    set_message_id(message, "1")
    reply = app(message, Context(1, 11, UserConfig(), RecordDict(), UserConfig()))
    assert said == [("error", "turned away: the unknown domain 'photo'")]
    assert not reply.has_error()
