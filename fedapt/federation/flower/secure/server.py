"""The server's side of a secure round: it forwards sealed shares, adds vectors, and removes masks.

Source: Bonawitz et al. (CCS 2017), figure 4, without its signatures: the server is trusted to
forward the clients' own public keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedapt.core.config import Config
from fedapt.core.errors import ConfigError
from fedapt.federation.flower.secure import KEYS, MASKED, SECURE, SHARES, UNMASK
from fedapt.federation.flower.secure.binding import hash_keys, hash_parts
from fedapt.federation.flower.secure.client import WORDS
from fedapt.federation.flower.secure.encoding import Encoding, Total, count_words
from fedapt.federation.flower.secure.group import MIN_CLIENTS, Grouping
from fedapt.federation.flower.secure.masks import (
    Words,
    is_public_key,
    own_mask,
    pair_mask,
    public_key,
)
from fedapt.federation.flower.secure.shares import SEALED_BYTES, SHARE_BYTES, combine
from fedapt.federation.flower.task import LEARNED, REPLY
from fedapt.federation.flower.tensors import check_array
from fedapt.training.methods.base import Learned

# (stage, client -> contents besides its task) -> replies as they arrive
Ask = Callable[[str, Mapping[int, RecordDict]], Iterator[tuple[int, RecordDict]]]
# called with a client whose reply cannot be used, and the reason
Refuse = Callable[[int, str], None]


class SecureRound:
    """One round, from fresh keys to the sum.

    Args:
        ask: sends messages to clients; clients without a reply are absent.
        refuse: called for each refused reply.
        round_number: number of the round, from 0.
        config: settings of the run.
        work: hash of the description of the round's training that every client gets.
    """

    def __init__(
        self, ask: Ask, refuse: Refuse, round_number: int, config: Config, work: bytes
    ) -> None:
        self._ask, self._refuse, self._round = ask, refuse, round_number
        self._config, self._work = config, work
        self._grouping = Grouping.of(config.federation)
        self._keys_hash = b""
        self._mask_keys: dict[int, bytes] = {}
        self._share_keys: dict[int, bytes] = {}
        self._neighbours: dict[int, list[int]] = {}

    def add_up(
        self, contents: Mapping[int, RecordDict], start: Learned
    ) -> tuple[Total, tuple[int, ...]]:
        """The mean of the clients' updates, and the clients in it.

        Args:
            contents: client -> its inputs for training, besides the sealed shares.
            start: the tensors that every client is sent.

        Raises:
            ConfigError: too few clients or neighbours to hide an update.
            ValueError: too few clients are left, which is checked before the first mask is removed,
                or their messages contradict each other.
        """
        if len(contents) < MIN_CLIENTS:
            raise ConfigError(
                where="federation.secure",
                found=f"a round of {len(contents)} clients",
                expected=f"{MIN_CLIENTS} or more, since each of two learns the other's update",
                next_step="sample more clients, or raise min_nodes in server.toml",
            )
        self._collect_keys(contents)
        sealed = self._deal_shares()
        total, sent = self._add_masked(contents, sealed, count_words(start))
        min_replies = min(self._config.federation.min_replies, len(contents))
        _check_left("that sent their vector (federation.min_replies)", sent, min_replies)
        self._remove_masks(total, sent, sealed)
        encoding = Encoding.of(self._config, len(self._mask_keys))
        return encoding.decode(total, len(sent), start), tuple(sorted(sent))

    def _collect_keys(self, clients: Collection[int]) -> None:
        for client, reply in self._ask(KEYS, {client: RecordDict() for client in clients}):
            record = reply.config_records.get(REPLY, ConfigRecord())
            keys: list[Any] = [record.get("mask_key"), record.get("share_key")]
            known = {*self._mask_keys.values(), *self._share_keys.values()}
            if not all(type(key) is bytes and is_public_key(key) for key in keys):
                self._refuse(client, "not two public keys of X25519")
            elif keys[0] == keys[1] or known & set(keys):
                self._refuse(client, "a public key that is already in use")
            else:
                self._mask_keys[client], self._share_keys[client] = keys
        _check_left("that sent keys", self._mask_keys, MIN_CLIENTS)
        try:
            self._neighbours = self._grouping.draw(sorted(self._mask_keys))
        except ValueError as error:
            raise ConfigError(
                where=f"federation.secure_neighbours = {self._grouping.neighbours}",
                found=f"{error}, of {len(self._mask_keys)} clients",
                expected="enough neighbours for the shares of federation.secure_colluding and"
                " secure_dropping",
                next_step="set it to 0, which selects a sufficient number",
            ) from error
        self._keys_hash = hash_keys(
            {c: (key, self._share_keys[c]) for c, key in self._mask_keys.items()}
        )

    def _deal_shares(self) -> dict[int, dict[int, bytes]]:
        """Sender -> receiver -> sealed shares."""
        asked, n_clients = {}, len(self._mask_keys)
        for client in self._neighbours:
            group = self._group(client)
            record = ConfigRecord(
                {
                    "clients": n_clients,
                    "keys_hash": self._keys_hash,
                    "group": group,
                    "mask_keys": [self._mask_keys[member] for member in group],
                    "share_keys": [self._share_keys[member] for member in group],
                }
            )
            asked[client] = RecordDict({SECURE: record})
        sealed: dict[int, dict[int, bytes]] = {}
        for client, reply in self._ask(SHARES, asked):
            record = reply.config_records.get(REPLY, ConfigRecord())
            boxes: Any = record.get("sealed")
            peers = self._neighbours[client]
            if record.get("peers") != peers or not _are_bytes(boxes, len(peers), SEALED_BYTES):
                self._refuse(client, f"no sealed shares for each of {len(peers)} neighbours")
            else:
                sealed[client] = dict(zip(peers, boxes, strict=True))
        _check_left("that sent shares", sealed, MIN_CLIENTS)
        return sealed

    def _add_masked(
        self,
        contents: Mapping[int, RecordDict],
        sealed: Mapping[int, Mapping[int, bytes]],
        n_words: int,
    ) -> tuple[Words, set[int]]:
        asked = {}
        for client in sealed:
            senders = [peer for peer in self._neighbours[client] if peer in sealed]
            boxes = [sealed[peer][client] for peer in senders]
            record = ConfigRecord({"peers": senders, "sealed": boxes})
            asked[client] = RecordDict({**contents[client], SECURE: record})
        total, sent = np.zeros(n_words, np.uint64), set()
        for client, reply in self._ask(MASKED, asked):
            arrays = reply.array_records.get(LEARNED)
            if arrays is None or arrays.keys() != {WORDS}:
                self._refuse(client, "a reply without words")
            elif reason := check_array(WORDS, arrays[WORDS], (n_words,), "uint64"):
                self._refuse(client, reason)
            else:
                total += arrays[WORDS].numpy()
                sent.add(client)
        for client in sealed:
            left = [member for member in self._group(client) if member in sent]
            _check_left(
                f"of the group of client {client} that sent their vector",
                left,
                self._needed(client),
            )
        return total, sent

    def _remove_masks(
        self, total: Words, sent: set[int], sealed: Mapping[int, Mapping[int, bytes]]
    ) -> None:
        """Remove from the total the own masks of senders and the pair masks of dropped clients."""
        asked, wanted = {}, {}
        everybody = sorted(sent)
        for client in everybody:
            group = [member for member in self._group(client) if member in sealed]
            there = [member for member in group if member in sent]
            gone = [member for member in group if member not in sent]
            record = ConfigRecord({"sent": there, "dropped": gone, "everybody": everybody})
            asked[client] = RecordDict({SECURE: record})
            wanted[client] = [*there, *gone]
        binding = hash_parts(self._work, self._keys_hash)
        shares: dict[int, list[bytes]] = {client: [] for client in sealed}
        for client, reply in self._ask(UNMASK, asked):
            found: Any = reply.config_records.get(REPLY, ConfigRecord()).get("shares")
            if not _are_bytes(found, len(wanted[client]), SHARE_BYTES):
                self._refuse(client, "no share of each of its group")
                continue
            for owner, share in zip(wanted[client], found, strict=True):
                shares[owner].append(share)
        for client, found in shares.items():
            needed = self._needed(client)
            _check_left(f"that sent a share of client {client}", found, needed)
            secret = self._combine(client, found[:needed])
            if client in sent:
                total -= own_mask(secret, client, self._round, len(total))
                continue
            if public_key(secret) != self._mask_keys[client]:
                raise ValueError(f"shares that do not give the key of client {client}")
            for other in self._neighbours[client]:
                if other in sent:  # its mask for this client is the negative of this client's mask
                    key = self._mask_keys[other]
                    total += pair_mask(secret, client, key, other, binding, len(total))

    def _combine(self, client: int, shares: list[bytes]) -> bytes:
        try:
            return combine(shares)
        except ValueError as error:
            raise ValueError(f"shares of client {client}: {error}") from error

    def _group(self, client: int) -> list[int]:
        return sorted((*self._neighbours[client], client))

    def _needed(self, client: int) -> int:
        return self._grouping.count_needed(len(self._neighbours[client]) + 1)


def _check_left(what: str, left: Collection[object], needed: int) -> None:
    if len(left) < needed:
        raise ValueError(f"{len(left)} clients {what}, where {needed} have to be")


def _are_bytes(values: Any, count: int, size: int) -> bool:
    """Whether these are `count` byte strings of `size` bytes."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) is bytes and len(value) == size for value in values)
    )
