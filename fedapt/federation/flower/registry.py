"""The registry of a federation's members: each node states its name and domain and gets an index.

The first nodes are sorted by domain and name, as in the local engine. Later nodes are appended, so
the keys and random numbers of the others do not change. The order is saved to disk before use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedapt.core.errors import FederationError
from fedapt.core.files import write_text
from fedapt.data.partition import ClientInfo
from fedapt.federation.flower.internals import NODE_UNAVAILABLE
from fedapt.federation.flower.settings import NAME
from fedapt.federation.flower.task import REFUSAL, REPLY, TASK, Plan, task_to_record
from fedapt.federation.flower.watch import Watch

_POLL_S, _TELL_S = 0.3, 10.0
# time for a node to reconnect, for example after a restart
_BACK_S = 30.0


@dataclass(frozen=True)
class Member:
    """The name and domain that a node states."""

    name: str
    domain: str


class NodeRegistry:
    """The members of a federation, in their order.

    Args:
        path: file that keeps the order; read if it exists.
        name_nodes: numbers of the nodes that are connected, and the names of their keys.
        plan: plan of the run, for which a new node prepares.
        allowed: domains that may take part; none for any.

    Raises:
        FederationError: the file is damaged.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        name_nodes: Callable[[], Mapping[int, str]],
        plan: Plan,
        watch: Watch,
        allowed: Sequence[str] = (),
    ) -> None:
        self._path, self._grid, self._plan = path, grid, plan
        self._name_nodes = name_nodes
        self._watch, self._allowed = watch, allowed
        self.members: list[Member] = _read(path)
        self._nodes: dict[str, int] = {}  # name -> node, connected now or earlier
        self._new: list[Member] = []
        self._asked: dict[str, int] = {}  # message -> node whose answer is awaited
        self._seen: set[int] = set()
        self._expected: set[str] = set()  # nodes for which no wait has failed
        self._reasons: dict[str, str] = {}

    @property
    def domains(self) -> tuple[str, ...]:
        """Their domains, in the order of their first members."""
        return tuple(dict.fromkeys(member.domain for member in self.members))

    def wait(
        self, least: int, seconds: float, find_registered: Callable[[], Collection[str]] = tuple
    ) -> None:
        """Wait until `least` nodes are ready, and add them as members.

        Args:
            find_registered: names of the nodes that may connect, to report the missing ones.

        Raises:
            FederationError: too few nodes within that time.
        """
        started = told = time.monotonic()
        while len(here := self.connected()) < least:
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                connected = set(self._name_nodes().values())
                # nodes without a key have no name here
                unseen = [] if "" in connected else sorted(set(find_registered()) - connected)
                others = sorted(connected - set(here) - set(self._reasons) - {""})
                self._watch.waiting(len(here), least, unseen, others)
            if time.monotonic() - started > seconds:
                raise FederationError(
                    where="the federation",
                    found=f"{len(here)} nodes ({', '.join(sorted(here)) or 'none'})"
                    + "".join(f"; {name}: {why}" for name, why in self._reasons.items()),
                    expected=f"{least} (min_nodes) within {seconds:g} s",
                    next_step="check the other nodes, or lower min_nodes",
                )
            time.sleep(_POLL_S)
        self.admit()

    def admit(self) -> bool:
        """Append nodes that have become ready; False if there are none."""
        new, self._new = sorted(self._new, key=lambda m: (m.domain, m.name)), []
        if new:
            self.members.extend(new)
            lines = [{"name": member.name, "domain": member.domain} for member in self.members]
            write_text(self._path, json.dumps(lines, indent=1, ensure_ascii=False) + "\n")
        return bool(new)

    def connected(self) -> dict[str, int]:
        """Name -> node of all connected, ready nodes. New nodes are asked without waiting."""
        names = self._name_nodes()
        here = set(names)
        self._seen &= here  # a node that reconnects introduces itself again
        self._ask(sorted(here - self._seen - set(self._asked.values())))
        if self._asked:
            for reply in self._grid.pull_messages(list(self._asked)):
                node = self._asked.pop(reply.metadata.reply_to_message_id)
                if reply.has_error() and reply.error.code == NODE_UNAVAILABLE:
                    self._seen.discard(node)  # it disconnected before it read this, and may return
                    continue
                admitted_as = names.get(node, "")
                if (member := self._read_member(node, admitted_as, reply, here)) is not None:
                    self._nodes[member.name] = node
                    if member not in self.members and member not in self._new:
                        self._new.append(member)
                    self._watch.joined(member.name, member.domain)
        found = {name: node for name, node in self._nodes.items() if node in here}
        self._expected |= found.keys()
        return found

    def find_nodes(self, clients: Sequence[ClientInfo]) -> Mapping[int, int]:
        """The nodes of these clients; disconnected nodes are absent.

        A node that was connected before has `_BACK_S` to reconnect, once.
        """
        names = {c.index: self.members[c.index].name for c in clients}
        expected, started = self._expected.intersection(names.values()), time.monotonic()
        while missing := expected - (here := self.connected()).keys():
            if time.monotonic() - started > _BACK_S:
                self._expected -= missing
                break
            time.sleep(_POLL_S)
        return {index: here[name] for index, name in names.items() if name in here}

    def _ask(self, nodes: Sequence[int]) -> None:
        messages = [
            Message(RecordDict({TASK: task_to_record(self._plan)}), node, MessageType.QUERY)
            for node in nodes
        ]
        for message_id, node in zip(self._grid.push_messages(messages), nodes, strict=True):
            if message_id:
                self._asked[message_id] = node
                self._seen.add(node)

    def _read_member(
        self, node: int, admitted_as: str, reply: Message, here: set[int]
    ) -> Member | None:
        """The member; None, with a report, if it cannot take part.

        Args:
            admitted_as: the name that the server's operator gave the node's key; empty without one.
        """
        member, reason = Member(admitted_as or f"node {node}", ""), ""
        records = {} if reply.has_error() else reply.content.config_records
        values = records.get(REPLY, ConfigRecord())
        name, domain = values.get("name"), values.get("domain")
        if reply.has_error():
            reason = f"Flower's error {reply.error.reason}"
        elif REFUSAL in records:
            reason = str(records[REFUSAL].get("reason"))
        elif not all(isinstance(v, str) and NAME.fullmatch(v) for v in (name, domain)):
            reason = "no name and domain of plain characters"
        else:
            member = Member(str(name), str(domain))
            reason = self._find_conflict(member, here - {node})
            if admitted_as and name != admitted_as:
                reason = f"the key of {admitted_as}"
            if reason:
                told = RecordDict({REFUSAL: ConfigRecord({"reason": reason})})
                self._grid.push_messages([Message(told, node, MessageType.QUERY)])
        if reason:
            self._reasons[member.name] = reason
            self._watch.turned_away(member.name, reason)
            return None
        return member

    def _find_conflict(self, member: Member, others: set[int]) -> str:
        """The reason why a node of this name and domain cannot take part; empty if it can."""
        if self._allowed and member.domain not in self._allowed:
            return f"the unknown domain {member.domain!r}"
        if any(m.name == member.name and m.domain != member.domain for m in self.members):
            return f"a name of another domain than {member.domain}"
        if self._nodes.get(member.name) in others:
            return "a name that another connected node has"
        return ""


def _read(path: Path) -> list[Member]:
    if not path.is_file():
        return []
    try:
        return [
            Member(str(m["name"]), str(m["domain"])) for m in json.loads(path.read_text("utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FederationError(
            where=path,
            found=f"{type(error).__name__}",
            expected="the members as the server wrote them",
            next_step="restore the file, or begin a new run in another folder",
        ) from error
