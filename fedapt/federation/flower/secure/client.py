"""The four stages at a node: Flower's messages -> `Participant` -> replies.

The node trains in the third stage. It then sends one masked vector of words, which look random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedapt.core.errors import FederationError
from fedapt.federation.flower.node import Node
from fedapt.federation.flower.secure import KEYS, MASKED, SECURE, SHARES, UNMASK
from fedapt.federation.flower.secure.binding import hash_parts, hash_tensors, hash_work
from fedapt.federation.flower.secure.encoding import Encoding
from fedapt.federation.flower.secure.group import Grouping
from fedapt.federation.flower.secure.participant import begin_round, find_participant, keep
from fedapt.federation.flower.task import LEARNED, REPLY, TASK, read_place, read_plan, unpack

# (message, context, the node's task) -> the reply, or the reason for none
Answer = Callable[[Message, Context, Callable[[Node], RecordDict]], Message]

WORDS = "words"


def add_stages(app: ClientApp, answer: Answer) -> None:
    """Add the stages of secure rounds to an app."""

    @app.train(KEYS)
    def keys(message: Message, context: Context) -> Message:
        """Fresh secrets, and their public halves."""

        def work(node: Node) -> RecordDict:
            place = read_place(message.content.config_records[TASK])
            participant = begin_round(context.state, place.client, place.round)
            keep(participant, context.state)
            mask, share = participant.public_keys
            return RecordDict({REPLY: ConfigRecord({"mask_key": mask, "share_key": share})})

        return answer(message, context, work)

    @app.train(SHARES)
    def shares(message: Message, context: Context) -> Message:
        """Shares of the secrets, sealed for each neighbour."""

        def work(node: Node) -> RecordDict:
            task = message.content.config_records[TASK]
            place, asked = read_place(task), _read(message)
            participant = find_participant(context.state, place.client, place.round)
            sealed = participant.deal(
                _whole(asked, "clients"),
                _wholes(asked, "group"),
                _texts(asked, "mask_keys"),
                _texts(asked, "share_keys"),
                _text(asked, "keys_hash"),
                Grouping.of(read_plan(task).config.federation),
            )
            keep(participant, context.state)
            record = ConfigRecord({"peers": list(sealed), "sealed": list(sealed.values())})
            return RecordDict({REPLY: record})

        return answer(message, context, work)

    @app.train(MASKED)
    def masked(message: Message, context: Context) -> Message:
        """One client's round, under its masks."""

        def work(node: Node) -> RecordDict:
            plan, place, start, known = unpack(message.content, node.device)
            participant = find_participant(context.state, place.client, place.round)
            asked = _read(message)
            peers, sealed = _wholes(asked, "peers"), _texts(asked, "sealed")
            if len(peers) != len(sealed):
                _complain("sealed", sealed)
            participant.open_shares(dict(zip(peers, sealed, strict=True)))
            update = node.train(plan, place, start, known)
            encoding = Encoding.of(plan.config, participant.n_clients)
            words = participant.mask(
                encoding.encode(update, start),
                hash_work(
                    message.content.config_records[TASK],
                    place.round,
                    start,
                    {} if known is None else {"keys": known},
                ),
                hash_parts(hash_tensors(start), place.share.to_bytes(8, "little")),
            )
            keep(participant, context.state)
            return RecordDict({LEARNED: ArrayRecord({WORDS: Array(words)})})

        return answer(message, context, work)

    @app.train(UNMASK)
    def unmask(message: Message, context: Context) -> Message:
        """Shares with which the server removes masks from the sum."""

        def work(node: Node) -> RecordDict:
            place = read_place(message.content.config_records[TASK])
            participant = find_participant(context.state, place.client, place.round)
            asked = _read(message)
            everybody = _wholes(asked, "everybody")
            found = participant.reveal(_wholes(asked, "sent"), _wholes(asked, "dropped"), everybody)
            node.memory.keep_sum(participant.start, participant.hash_sum(everybody))
            keep(participant, context.state)
            return RecordDict({REPLY: ConfigRecord({"shares": found})})

        return answer(message, context, work)


def _read(message: Message) -> ConfigRecord:
    return message.content.config_records.get(SECURE) or ConfigRecord()


def _whole(record: ConfigRecord, name: str) -> int:
    value = record.get(name)
    return value if type(value) is int else _complain(name, value)


def _wholes(record: ConfigRecord, name: str) -> list[int]:
    value: Any = record.get(name)
    fits = isinstance(value, list) and all(type(v) is int for v in value)
    return list(value) if fits else _complain(name, value)


def _text(record: ConfigRecord, name: str) -> bytes:
    value = record.get(name)
    return value if type(value) is bytes else _complain(name, value)


def _texts(record: ConfigRecord, name: str) -> list[bytes]:
    value: Any = record.get(name)
    fits = isinstance(value, list) and all(type(v) is bytes for v in value)
    return list(value) if fits else _complain(name, value)


def _complain(name: str, value: object) -> Any:
    raise FederationError(
        where="the server's message",
        shareable=True,
        found=f"{name} of {type(value).__name__}",
        expected="a stage of this version of fedapt",
        next_step="install the same version of fedapt on server and nodes",
    )
