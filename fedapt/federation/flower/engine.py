"""The Flower engine: every client in a process of its own, on this machine or another.

The rounds, the draw of clients and the average are those of every engine (`fedapt.train.loop`);
here a client's share of the aggregate goes out in a message, and comes back in a reply that is
checked before anything is done with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedapt.core.config import FederationConfig
from fedapt.core.errors import FederationError
from fedapt.core.records import Record
from fedapt.data.partition import Client
from fedapt.federation.flower.exchange import Answer, exchange
from fedapt.federation.flower.node import Score
from fedapt.federation.flower.privacy import find_multiplier
from fedapt.federation.flower.replies import read_refusal, read_score, read_update
from fedapt.federation.flower.secure.binding import hash_work
from fedapt.federation.flower.secure.server import SecureRound
from fedapt.federation.flower.task import KEYS, LEARNED, TASK, Place, Plan, task_to_record
from fedapt.federation.flower.tensors import to_arrays
from fedapt.federation.flower.watch import Watch
from fedapt.train.client import ClientUpdate
from fedapt.train.methods.base import Learned, Method
from fedapt.train.privacy import find_epsilon

# which Flower node plays each of these clients; clients whose node is away are left out
FindNodes = Callable[[Sequence[Client]], Mapping[int, int]]


@dataclass
class _Round:
    """What one round's record says beyond the loop's own fields."""

    number: int = 0
    n_bytes: int = 0
    evaluation_bytes: int = 0
    replies: int = 0
    clipped: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class FlowerEngine:
    """Runs a round's clients through a Grid. See `train.loop.Engine`.

    Args:
        method: on the server, whose clients need no images.
        plan: what nodes are told of the run.
        grid: Flower's, connected.
        find_nodes: client -> node.
        watch: told of every reply, and of nodes that are late or refused.
    """

    def __init__(
        self,
        method: Method,
        plan: Plan,
        grid: Grid,
        find_nodes: FindNodes,
        watch: Watch,
    ) -> None:
        self._method, self._plan, self._grid = method, plan, grid
        self._find_nodes, self._watch = find_nodes, watch
        self._last = _Round()

    def train_round(
        self, start: Learned, clients: Sequence[Client], round_number: int
    ) -> Iterator[ClientUpdate]:
        """Send every client its share of `start`; sound replies, in the order of the clients.

        Raises:
            FederationError: fewer sound replies than `federation.min_replies`.
        """
        self._last = _Round(round_number)
        if self._limits.secure:
            yield self._train_in_secret(start, clients)
            return
        updates: dict[int, ClientUpdate] = {}
        shares = {c.index: self._method.share(start, c) for c in clients}
        contents = {c.index: self._fill(c, shares[c.index], round_number) for c in clients}
        for client, answer in self._ask(MessageType.TRAIN, clients, contents):
            self._last.n_bytes += answer.n_bytes
            update = read_update(answer, client, shares[client.index], self._limits.max_update)
            if isinstance(update, str):
                self._refuse(client, update)
            else:
                updates[client.index] = update
                self._last.seconds[client.name] = round(answer.seconds, 3)
                self._watch.replied(client.name, update.n_samples, answer.seconds)
        self._check_replies(len(updates), clients)
        yield from (updates[index] for index in sorted(updates))

    def _train_in_secret(self, start: Learned, clients: Sequence[Client]) -> ClientUpdate:
        """One update that stands for the mean of all; who learned what, nobody is told."""
        last, by_index = self._last, {c.index: c for c in clients}
        nodes = self._find_nodes(clients)
        for client in clients:
            last.seconds[client.name] = 0.0

        def ask(stage: str, asked: Mapping[int, RecordDict]) -> Iterator[tuple[int, RecordDict]]:
            those = [by_index[index] for index in asked]
            contents = {
                c.index: RecordDict({TASK: self._describe(c, last.number), **asked[c.index]})
                for c in those
            }
            kind = f"{MessageType.TRAIN}.{stage}"
            for client, answer in self._ask(kind, those, contents, nodes):
                last.n_bytes += answer.n_bytes
                last.seconds[client.name] = round(last.seconds[client.name] + answer.seconds, 3)
                if reason := read_refusal(answer):
                    self._refuse(client, reason)
                else:
                    yield client.index, answer.reply.content

        def refuse(index: int, reason: str) -> None:
            self._refuse(by_index[index], reason)

        hashed = hash_work(self._plan, last.number, start, self._method.frozen())
        secret = SecureRound(ask, refuse, last.number, self._plan.config, hashed)
        work = self._work(start)
        try:
            found, added = secret.add_up({c.index: work for c in clients}, start)
        except ValueError as error:
            raise FederationError(
                where=f"round {last.number + 1}",
                found=str(error) + self._list_refused(),
                expected="a sum of the round's updates",
                next_step="see to these nodes and start again: the checkpoint of the round before"
                " is kept",
            ) from error
        last.replies, last.clipped = len(added), found.clipped
        for index in added:
            name = by_index[index].name
            self._watch.replied(name, None, last.seconds[name])
        return ClientUpdate(added[0], found.learned, found.images, found.loss)

    def _check_replies(self, count: int, clients: Sequence[Client]) -> None:
        self._last.replies = count
        least = min(self._limits.min_replies, len(clients))
        if count < least:
            raise FederationError(
                where=f"round {self._last.number + 1}",
                found=f"{count} usable replies of {len(clients)}{self._list_refused()}",
                expected=f"at least {least} (federation.min_replies)",
                next_step="see to these nodes and start again: the checkpoint of the round before"
                " is kept",
            )

    def _list_refused(self) -> str:
        return "".join(f"; {name}: {why}" for name, why in self._last.refused.items())

    def measure(self, learned: Learned) -> dict[int, Score]:
        """What each client's node reports of the aggregate; nodes that do not answer are absent."""
        clients = self._method.setting.clients
        contents = {c.index: self._fill(c, learned, self._last.number) for c in clients}
        scores = {}
        for client, answer in self._ask(MessageType.EVALUATE, clients, contents):
            self._last.evaluation_bytes += answer.n_bytes
            score = read_score(answer)
            if isinstance(score, str):
                self._refuse(client, score)
            else:
                scores[client.index] = score
        return scores

    def describe_round(self, earlier: Sequence[Record]) -> Record:
        """Bytes as they were sent, seconds of each client, and whose reply was not used.

        With noise of the nodes, what they have given away in this round and the earlier ones.
        """
        last = self._last
        record: Record = {
            "bytes_sent": last.n_bytes,
            "replies": last.replies,
            "client_seconds": dict(sorted(last.seconds.items())),
        }
        if last.evaluation_bytes:
            record["evaluation_bytes"] = last.evaluation_bytes
        if last.clipped:
            record["clipped_values"] = last.clipped
        if self._limits.node_noise:
            replies = [*(r["replies"] for r in earlier), last.replies]
            multipliers = [find_multiplier(self._limits, n) for n in replies]
            record["epsilon"] = find_epsilon(multipliers, self._limits.delta)
        return record | ({"refused": last.refused} if last.refused else {})

    @property
    def _limits(self) -> FederationConfig:
        return self._plan.config.federation

    def _fill(self, client: Client, learned: Learned, round_number: int) -> RecordDict:
        return RecordDict({TASK: self._describe(client, round_number), **self._work(learned)})

    def _work(self, learned: Learned) -> RecordDict:
        return RecordDict({LEARNED: to_arrays(learned), KEYS: to_arrays(self._method.frozen())})

    def _describe(self, client: Client, round_number: int) -> ConfigRecord:
        share = 0  # a node's folder is its own, except where one is dealt out to several
        if self._limits.clients_per_domain > 1:
            siblings = [c.index for c in self._method.setting.clients if c.domain == client.domain]
            share = siblings.index(client.index)
        return task_to_record(self._plan, Place.of(client, share, round_number))

    def _ask(
        self,
        kind: str,
        clients: Sequence[Client],
        contents: Mapping[int, RecordDict],
        nodes: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[Client, Answer]]:
        """Send to the clients' nodes; answers as they come, until the round's time is over.

        Args:
            nodes: of the clients, where it has been found before.
        """
        if nodes is None:
            nodes = self._find_nodes(clients)
        seconds, group = self._limits.round_seconds, str(self._last.number + 1)
        messages: list[Message] = []
        waiting: dict[int, Client] = {}
        for client in clients:
            if (node := nodes.get(client.index)) is None:
                self._refuse(client, "not connected")
                continue
            waiting[len(messages)] = client
            messages.append(
                Message(contents[client.index], node, kind, ttl=seconds, group_id=group)
            )
        started = time.monotonic()
        for place, answer in exchange(self._grid, messages, seconds):
            yield waiting.pop(place), answer
        for client in waiting.values():
            waited = time.monotonic() - started
            self._refuse(client, f"no reply within {waited:.0f} s")

    def _refuse(self, client: Client, reason: str) -> None:
        self._last.refused[client.name] = reason
        self._watch.refused(client.name, self._last.number + 1, reason)
