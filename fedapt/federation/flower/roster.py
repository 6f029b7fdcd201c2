"""Who takes part: nodes introduce themselves by name and domain, and get an index that stays theirs.

The first nodes are put into the order of domain and name, as the local engine has them; who joins
later comes behind them, so that nobody's key or random numbers move. The order is kept on disk,
before it is used.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, MessageType, Message, RecordDict
from flwr.serverapp import Grid

import fedapt
from fedapt.core.errors import FederationError
from fedapt.core.files import write_text
from fedapt.data.partition import Client
from fedapt.federation.flower.client_app import REFUSAL, REPLY, TASK
from fedapt.federation.flower.exchange import exchange
from fedapt.federation.flower.task import PROTOCOL
from fedapt.federation.flower.watch import Watch

_NAME = re.compile(r"[\w .@-]{1,100}")
_ANSWER_S = 30.0
_POLL_S = 1.0


@dataclass(frozen=True)
class Member:
    """A node by its own words."""

    name: str
    domain: str


class Roster:
    """The members of a federation, in their order.

    Args:
        path: of the file that keeps the order; read where it exists.
        allowed: domains that may take part; empty for any.

    Raises:
        FederationError: the file is damaged.
    """

    def __init__(self, path: Path, grid: Grid, watch: Watch, allowed: Sequence[str] = ()) -> None:
        self._path, self._grid, self._watch, self._allowed = path, grid, watch, allowed
        self.members: list[Member] = _read(path)
        self._nodes: dict[str, int] = {}  # name -> node that is connected, or was
        self._turned_away: set[int] = set()

    @property
    def domains(self) -> tuple[str, ...]:
        """Their domains, in the order of their first members."""
        return tuple(dict.fromkeys(member.domain for member in self.members))

    def wait(self, least: int, seconds: float) -> None:
        """Until `least` members are connected.

        Raises:
            FederationError: not within that time.
        """
        started = time.monotonic()
        while len(here := self.connected()) < least:
            if time.monotonic() - started > seconds:
                raise FederationError(
                    where="the federation",
                    found=f"{len(here)} nodes ({', '.join(sorted(here)) or 'none'})",
                    expected=f"{least} (least_nodes) within {seconds:g} s",
                    next_step="start the others, or lower least_nodes",
                )
            time.sleep(_POLL_S)

    def connected(self) -> dict[str, int]:
        """Name -> node of every member that is here, once those that are new are introduced."""
        here = set(self._grid.get_node_ids())
        known = set(self._nodes.values()) | self._turned_away
        if new := sorted(here - known):
            self._introduce(new, here)
        return {name: node for name, node in self._nodes.items() if node in here}

    def find_nodes(self, clients: Sequence[Client]) -> Mapping[int, int]:
        """The nodes of these clients; those that are away are absent."""
        here = self.connected()
        names = {c.index: self.members[c.index].name for c in clients}
        return {index: here[name] for index, name in names.items() if name in here}

    def _introduce(self, nodes: Sequence[int], here: set[int]) -> None:
        task = ConfigRecord({"protocol": PROTOCOL, "version": fedapt.__version__})
        messages = [
            Message(RecordDict({TASK: task}), node, MessageType.QUERY, ttl=_ANSWER_S)
            for node in nodes
        ]
        found: list[tuple[Member, int]] = []
        for place, answer in exchange(self._grid, messages, _ANSWER_S):
            member = self._read_member(nodes[place], answer.reply, here)
            if member is None:
                self._turned_away.add(nodes[place])
            else:
                found.append((member, nodes[place]))
        for member, node in sorted(found, key=lambda pair: (pair[0].domain, pair[0].name)):
            self._nodes[member.name] = node
            if member not in self.members:
                self.members.append(member)
            self._watch.joined(member.name, member.domain)
        lines = [{"name": member.name, "domain": member.domain} for member in self.members]
        write_text(self._path, json.dumps(lines, indent=1, ensure_ascii=False) + "\n")

    def _read_member(self, node: int, reply: Message, here: set[int]) -> Member | None:
        if reply.has_error():
            return self._turn_away(f"node {node}", f"Flower's error {reply.error.reason}")
        records = reply.content.config_records
        if REFUSAL in records:
            return self._turn_away(f"node {node}", str(records[REFUSAL].get("reason")))
        values = records.get(REPLY, ConfigRecord())
        name, domain = values.get("name"), values.get("domain")
        if not all(isinstance(v, str) and _NAME.fullmatch(v) for v in (name, domain)):
            return self._turn_away(f"node {node}", "no name and domain of plain characters")
        member = Member(str(name), str(domain))
        if self._allowed and member.domain not in self._allowed:
            return self._turn_away(member.name, f"the unknown domain {member.domain!r}")
        if any(m.name == member.name and m.domain != member.domain for m in self.members):
            return self._turn_away(member.name, f"a name of another domain than {member.domain}")
        if self._nodes.get(member.name) in here:
            return self._turn_away(member.name, "a name that another connected node has")
        return member

    def _turn_away(self, name: str, reason: str) -> None:
        self._watch.turned_away(name, reason)


def _read(path: Path) -> list[Member]:
    if not path.is_file():
        return []
    try:
        return [Member(str(m["name"]), str(m["domain"])) for m in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FederationError(
            where=path,
            found=f"{type(error).__name__}",
            expected="the members as the server wrote them",
            next_step="restore the file, or begin a new run in another folder",
        ) from error


