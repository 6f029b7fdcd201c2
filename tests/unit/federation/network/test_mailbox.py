"""Messages and replies, and which process of a node they are for."""

from __future__ import annotations

import asyncio

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedapt.federation.flower.internals import set_identity
from fedapt.federation.flower.network import grid as grid_module
from fedapt.federation.flower.network import mailbox as mailbox_module
from fedapt.federation.flower.network.content import encode
from fedapt.federation.flower.network.grid import MailboxGrid
from fedapt.federation.flower.network.mailbox import AWAY_S, Displaced, Mailbox, NotJoined


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(mailbox_module.time, "monotonic", lambda: now[0])
    return now


def take(mailbox: Mailbox, name: str, instance: str, seconds: float = 0.0):
    return asyncio.run(mailbox.take(name, instance, seconds))


def test_a_message_stays_until_it_is_answered(now: list[float]) -> None:
    mailbox = Mailbox()
    mailbox.join("a", "1")
    first = mailbox.put(1, "train", "3", 7, 60.0, b"one")
    second = mailbox.put(1, "train", "3", 7, 60.0, b"two")
    letter = take(mailbox, "a", "1")
    assert (letter.id, letter.kind, letter.group, letter.run, letter.body) == (
        first,
        "train",
        "3",
        7,
        b"one",
    )
    mailbox.join("a", "2")  # started again before it has answered
    assert take(mailbox, "a", "2").id == first
    assert mailbox.answer("a", "2", first, b"reply")
    assert not mailbox.answer("a", "2", first, b"again")
    assert take(mailbox, "a", "2").id == second
    assert list(mailbox.collect([first, second])) == [(first, b"reply")]
    assert list(mailbox.collect([first, second])) == []
    now[0] += 61.0
    assert take(mailbox, "a", "2") is None
    assert not mailbox.answer("a", "2", second, b"too late")


def test_a_node_is_one_process_the_later_one() -> None:
    mailbox = Mailbox()
    with pytest.raises(NotJoined):
        take(mailbox, "a", "1")
    mailbox.join("a", "1")
    mailbox.join("a", "1")
    mailbox.join("a", "2")
    for attempt in (
        lambda: take(mailbox, "a", "1"),
        lambda: mailbox.touch("a", "1"),
        lambda: mailbox.answer("a", "1", "x", b""),
        lambda: mailbox.join("a", "1"),
    ):
        with pytest.raises(Displaced):
            attempt()
    mailbox.touch("a", "2")
    with pytest.raises(NotJoined):
        mailbox.touch("b", "2")


def test_a_node_that_joins_for_ever_takes_no_memory() -> None:
    mailbox = Mailbox()
    for number in range(1000):
        mailbox.join("a", str(number))
    with pytest.raises(Displaced):
        mailbox.touch("a", "998")
    with pytest.raises(NotJoined):
        mailbox.touch("a", "0")
    mailbox.touch("a", "999")
    assert len(mailbox._boxes["a"].replaced) == 100


def test_messages_that_nobody_takes_are_thrown_away(now: list[float]) -> None:
    """Of a node that says it is busy for longer than a round."""
    mailbox = Mailbox()
    mailbox.join("a", "1")
    for number in range(5):
        mailbox.put(1, "train", str(number), 7, 60.0, b"12345")
        now[0] += 61.0
    assert [x.group for x in mailbox._boxes["a"].letters.values()] == ["4"]


def test_a_grid_forgets_what_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = Mailbox()
    mailbox.join("a", "1")
    grid = MailboxGrid(mailbox)
    old = Message(RecordDict(), 1, "train", ttl=60.0)
    grid.push_messages([old])
    created = old.metadata.created_at
    monkeypatch.setattr(grid_module.time, "time", lambda: created + 61.0)
    (number,) = grid.push_messages([Message(RecordDict(), 1, "train", ttl=600.0)])
    assert list(grid._sent) == [number]


def test_nobody_answers_for_another() -> None:
    mailbox = Mailbox()
    mailbox.join("a", "1")
    mailbox.join("b", "2")
    number = mailbox.put(1, "train", "", 7, 60.0, b"for a")
    assert not mailbox.answer("b", "2", number, b"of b")
    assert take(mailbox, "b", "2") is None
    assert list(mailbox.collect([number])) == []


def test_who_is_there(now: list[float]) -> None:
    mailbox = Mailbox()
    mailbox.join("a", "1")
    mailbox.join("b", "2")
    assert mailbox.online() == {1: "a", 2: "b"}
    now[0] += AWAY_S - 1
    mailbox.touch("b", "2")
    now[0] += 2
    assert mailbox.online() == {2: "b"}
    mailbox.leave("b", "1")  # a process that is no longer the node's
    assert mailbox.online() == {2: "b"}
    mailbox.leave("b", "2")
    assert mailbox.online() == {}


def test_who_waits_is_woken() -> None:
    mailbox = Mailbox()
    mailbox.join("a", "1")

    async def wait() -> bytes:
        waiting = asyncio.ensure_future(mailbox.take("a", "1", 600.0))
        await asyncio.sleep(0)
        await asyncio.to_thread(mailbox.put, 1, "train", "", 7, 60.0, b"now")
        letter = await waiting
        assert letter is not None
        return letter.body

    assert asyncio.run(wait()) == b"now"


def test_who_waits_is_told_that_another_has_come() -> None:
    mailbox = Mailbox()
    mailbox.join("a", "1")

    async def wait() -> None:
        waiting = asyncio.ensure_future(mailbox.take("a", "1", 600.0))
        await asyncio.sleep(0)
        mailbox.join("a", "2")
        await waiting

    with pytest.raises(Displaced):
        asyncio.run(wait())


def test_no_message_outlives_its_training() -> None:
    mailbox = Mailbox()
    mailbox.join("a", "1")
    with mailbox.training():
        mailbox.put(1, "train", "", 7, 60.0, b"12345")
        assert mailbox.largest == 5
    assert take(mailbox, "a", "1") is None
    assert mailbox.largest == 0


def test_a_grid_sends_and_receives() -> None:
    mailbox = Mailbox()
    for name in ("a", "b"):
        mailbox.join(name, "1")
    grid = MailboxGrid(mailbox)
    set_identity(1)
    assert dict(grid.name_nodes()) == {1: "a", 2: "b"}
    assert list(grid.get_node_ids()) == [1, 2]
    content = RecordDict({"task": ConfigRecord({"x": 1})})
    ids = grid.push_messages([Message(content, n, "train", group_id="2") for n in (1, 2)])
    letter = take(mailbox, "a", "1")
    assert (letter.id, letter.group, letter.body) == (ids[0], "2", encode(content))
    reply = RecordDict({"reply": MetricRecord({"images": 3})})
    mailbox.answer("a", "1", ids[0], encode(reply))
    mailbox.answer("b", "1", ids[1], b"noise")
    good, bad = grid.pull_messages(ids)
    assert good.metadata.reply_to_message_id == ids[0]
    assert good.metadata.group_id == "2"
    assert good.content.metric_records["reply"]["images"] == 3
    assert bad.has_error()
    assert bad.error.reason.startswith("a reply that cannot be read: ")
    assert grid.pull_messages(ids) == []
