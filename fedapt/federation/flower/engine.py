"""The Flower engine: every client in its own process, on this machine or another.

The rounds, the draw of clients and the aggregation are those of every engine (`fedapt.training`).
This engine sends a client's share of the aggregate in a message, and checks the reply before use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedapt.core.config import FederationConfig
from fedapt.core.errors import FederationError
from fedapt.data.partition import ClientInfo
from fedapt.federation.flower.exchange import Answer, exchange
from fedapt.federation.flower.node import Score
from fedapt.federation.flower.privacy import find_multiplier
from fedapt.federation.flower.replies import read_refusal, read_score, read_update
from fedapt.federation.flower.secure.binding import hash_work
from fedapt.federation.flower.secure.server import SecureRound
from fedapt.federation.flower.task import KEYS, LEARNED, TASK, Place, Plan, task_to_record
from fedapt.federation.flower.tensors import to_arrays
from fedapt.federation.flower.watch import Watch
from fedapt.training.aggregate import Aggregated, aggregate
from fedapt.training.client import ClientUpdate
from fedapt.training.loop import RoundResult
from fedapt.training.methods.base import Learned, Method

# which Flower node plays each of these clients; clients whose node is away are left out
FindNodes = Callable[[Sequence[ClientInfo]], Mapping[int, int]]


@dataclass(frozen=True)
class Reports:
    """The nodes' reports of an aggregate.

    Attributes:
        scores: client's index -> score; nodes without an answer are absent.
        n_bytes: to the nodes and back.
        refused: client -> why its report is not used.
    """

    scores: Mapping[int, Score]
    n_bytes: int
    refused: Mapping[str, str]


@dataclass
class _Traffic:
    """The traffic of one exchange, and the clients whose replies were refused.

    Attributes:
        round: number of the round, from 0.
        n_bytes: bytes sent to the clients and back.
        seconds: client's name -> time until its reply.
        refused: client's name -> reason.
    """

    round: int
    n_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class FlowerEngine:
    """Runs a round's clients through a Grid. See `train.loop.Engine`.

    Args:
        method: on the server, whose clients need no images.
        plan: description of the run for the nodes.
        grid: Flower's, connected.
        find_nodes: client -> node.
        watch: records every reply, and nodes that are late or refused.
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

    def run_round(
        self, start: Learned, clients: Sequence[ClientInfo], round_number: int
    ) -> RoundResult:
        """Send every client its share of `start`, and aggregate the sound replies.

        Raises:
            FederationError: fewer sound replies than `federation.min_replies`, or than the
                aggregate needs.
        """
        traffic = _Traffic(round_number)
        if self._limits.secure:
            return self._run_in_secret(start, clients, traffic)
        updates: dict[int, ClientUpdate] = {}
        shares = {c.index: self._method.share(start, c) for c in clients}
        contents = {c.index: self._fill(c, shares[c.index], round_number) for c in clients}
        for client, answer in self._ask(MessageType.TRAIN, clients, contents, traffic):
            update = read_update(answer, client, shares[client.index], self._limits.max_update)
            if isinstance(update, str):
                self._refuse(client, update, traffic)
            else:
                updates[client.index] = update
                traffic.seconds[client.name] = round(answer.seconds, 3)
                self._watch.replied(client.name, update.n_samples, answer.seconds)
        self._check_replies(len(updates), clients, traffic)
        in_order = [updates[index] for index in sorted(updates)]
        found = aggregate(self._plan.config, self._method, start, clients, in_order)
        return self._sum_up(found, traffic)

    def _run_in_secret(
        self, start: Learned, clients: Sequence[ClientInfo], traffic: _Traffic
    ) -> RoundResult:
        """The mean over all clients; the server does not learn single updates."""
        by_index = {c.index: c for c in clients}
        nodes = self._find_nodes(clients)

        def ask(stage: str, asked: Mapping[int, RecordDict]) -> Iterator[tuple[int, RecordDict]]:
            those = [by_index[index] for index in asked]
            contents = {
                c.index: RecordDict({TASK: self._describe(c, traffic.round), **asked[c.index]})
                for c in those
            }
            kind = f"{MessageType.TRAIN}.{stage}"
            for client, answer in self._ask(kind, those, contents, traffic, nodes):
                seconds = traffic.seconds.get(client.name, 0.0) + answer.seconds
                traffic.seconds[client.name] = round(seconds, 3)
                if reason := read_refusal(answer):
                    self._refuse(client, reason, traffic)
                else:
                    yield client.index, answer.reply.content

        def refuse(index: int, reason: str) -> None:
            self._refuse(by_index[index], reason, traffic)

        task = task_to_record(self._plan)
        hashed = hash_work(task, traffic.round, start, self._method.frozen())
        secret = SecureRound(ask, refuse, traffic.round, self._plan.config, hashed)
        work = self._work(start)
        try:
            found, added = secret.add_up({c.index: work for c in clients}, start)
        except ValueError as error:
            raise FederationError(
                where=f"round {traffic.round + 1}",
                found=str(error) + _list_refused(traffic),
                expected="a sum of the round's updates",
                next_step="see to these nodes and start again: the checkpoint of the round before"
                " is kept",
            ) from error
        for index in added:
            name = by_index[index].name
            self._watch.replied(name, None, traffic.seconds[name])
        learned = found.learned
        if self._method.adds_up:  # a sum again
            learned = {name: start[name] + len(added) * mean for name, mean in learned.items()}
        mean = Aggregated(learned, found.loss, found.images, len(added), None)
        clipped = {"clipped_values": found.clipped} if found.clipped else {}
        return self._sum_up(mean, traffic, clipped)

    def _sum_up(
        self, found: Aggregated, traffic: _Traffic, more: Mapping[str, int] | None = None
    ) -> RoundResult:
        multiplier = found.noise_multiplier
        if self._limits.node_noise:
            multiplier = find_multiplier(self._limits, found.n_replies)
        seconds = dict(sorted(traffic.seconds.items()))
        return RoundResult(
            found.learned,
            found.loss,
            found.n_images,
            traffic.n_bytes,
            traffic.refused,
            multiplier,
            {"replies": found.n_replies, "client_seconds": seconds, **(more or {})},
        )

    def _check_replies(self, count: int, clients: Sequence[ClientInfo], traffic: _Traffic) -> None:
        needed = min(self._limits.min_replies, len(clients))
        if count < needed:
            raise FederationError(
                where=f"round {traffic.round + 1}",
                found=f"{count} usable replies of {len(clients)}{_list_refused(traffic)}",
                expected=f"at least {needed} (federation.min_replies)",
                next_step="see to these nodes and start again: the checkpoint of the round before"
                " is kept",
            )

    def measure(self, learned: Learned, round_number: int) -> Reports:
        """Ask each client's node to evaluate the aggregate, and return the reports."""
        traffic, scores = _Traffic(round_number), {}
        clients = self._method.setting.clients
        contents = {c.index: self._fill(c, learned, round_number) for c in clients}
        for client, answer in self._ask(MessageType.EVALUATE, clients, contents, traffic):
            score = read_score(answer)
            if isinstance(score, str):
                self._refuse(client, score, traffic)
            else:
                scores[client.index] = score
        return Reports(scores, traffic.n_bytes, traffic.refused)

    @property
    def _limits(self) -> FederationConfig:
        return self._plan.config.federation

    def _fill(self, client: ClientInfo, learned: Learned, round_number: int) -> RecordDict:
        return RecordDict({TASK: self._describe(client, round_number), **self._work(learned)})

    def _work(self, learned: Learned) -> RecordDict:
        return RecordDict({LEARNED: to_arrays(learned), KEYS: to_arrays(self._method.frozen())})

    def _describe(self, client: ClientInfo, round_number: int) -> ConfigRecord:
        share = 0  # a node's folder is its own, except where one is dealt out to several
        if self._limits.clients_per_domain > 1:
            siblings = [c.index for c in self._method.setting.clients if c.domain == client.domain]
            share = siblings.index(client.index)
        return task_to_record(self._plan, Place.of(client, share, round_number))

    def _ask(
        self,
        kind: str,
        clients: Sequence[ClientInfo],
        contents: Mapping[int, RecordDict],
        traffic: _Traffic,
        nodes: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[ClientInfo, Answer]]:
        """Send to the clients' nodes, and yield answers until the round's deadline.

        Args:
            nodes: nodes of the clients, if already known.
        """
        if nodes is None:
            nodes = self._find_nodes(clients)
        seconds, group = self._limits.round_seconds, str(traffic.round + 1)
        messages: list[Message] = []
        waiting: dict[int, ClientInfo] = {}
        for client in clients:
            if (node := nodes.get(client.index)) is None:
                self._refuse(client, "not connected", traffic)
                continue
            waiting[len(messages)] = client
            messages.append(
                Message(contents[client.index], node, kind, ttl=seconds, group_id=group)
            )
        started = time.monotonic()
        for place, answer in exchange(self._grid, messages, seconds):
            traffic.n_bytes += answer.n_bytes
            yield waiting.pop(place), answer
        for client in waiting.values():
            waited = time.monotonic() - started
            self._refuse(client, f"no reply within {waited:.0f} s", traffic)

    def _refuse(self, client: ClientInfo, reason: str, traffic: _Traffic) -> None:
        traffic.refused[client.name] = reason
        self._watch.refused(client.name, traffic.round + 1, reason)


def _list_refused(traffic: _Traffic) -> str:
    return "".join(f"; {name}: {why}" for name, why in traffic.refused.items())
