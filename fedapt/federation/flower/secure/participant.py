"""A client in a secure round: its secrets, the shares that it sends, and its refusals.

A client passes each stage once and in order. It sends the server a reason for each refusal.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, RecordDict

from fedapt.core.errors import FederationError
from fedapt.federation.flower.secure import KEYS, MASKED, SECURE, SHARES, STAGES, UNMASK
from fedapt.federation.flower.secure.binding import hash_clients, hash_keys, hash_parts
from fedapt.federation.flower.secure.group import MIN_CLIENTS, Grouping
from fedapt.federation.flower.secure.masks import (
    KEY_BYTES,
    Words,
    draw_key,
    own_mask,
    pair_mask,
    public_key,
)
from fedapt.federation.flower.secure.shares import SHARE_BYTES, seal, split, unseal


@dataclass
class Participant:
    """A client's state in a round; all fields fit into a `ConfigRecord`.

    Attributes:
        client, round: index of the client, and number of the round from 0.
        stage: the last stage that the client has completed.
        mask_key, share_key: private X25519 keys.
        seed: seed of the client's own mask.
        n_clients: number of clients of the round, as the server states it.
        keys_hash: hash of the public keys of all clients of the round, as the server states it.
        needed: number of clients of the group that must stay.
        peers: indices of the neighbours, ascending.
        mask_keys, share_keys: the neighbours' public keys, in that order.
        senders: the neighbours that have sealed shares for this client, and the client itself.
        seed_shares, key_shares: shares of the senders' secrets, in that order.
        start: hash of the model at the start, and of the part of a folder's images.
        own: hash of the client's words.
    """

    client: int
    round: int
    stage: str
    mask_key: bytes
    share_key: bytes
    seed: bytes
    n_clients: int = 0
    keys_hash: bytes = b""
    needed: int = 0
    peers: list[int] = field(default_factory=list)
    mask_keys: list[bytes] = field(default_factory=list)
    share_keys: list[bytes] = field(default_factory=list)
    senders: list[int] = field(default_factory=list)
    seed_shares: list[bytes] = field(default_factory=list)
    key_shares: list[bytes] = field(default_factory=list)
    start: bytes = b""
    own: bytes = b""

    @classmethod
    def begin(cls, client: int, round_number: int) -> Participant:
        """Fresh secrets for a round."""
        return cls(
            client, round_number, KEYS, draw_key(), draw_key(), secrets.token_bytes(KEY_BYTES)
        )

    @property
    def public_keys(self) -> tuple[bytes, bytes]:
        """The public keys for masks, and for sealed shares."""
        return public_key(self.mask_key), public_key(self.share_key)

    def deal(
        self,
        n_clients: int,
        group: Sequence[int],
        mask_keys: Sequence[bytes],
        share_keys: Sequence[bytes],
        keys_hash: bytes,
        grouping: Grouping,
    ) -> dict[int, bytes]:
        """Shares of seed and mask key, sealed for each neighbour.

        Args:
            n_clients: number of clients of the round.
            group: neighbours and itself, ascending, with their public keys.
            keys_hash: hash of the public keys of all clients of the round.
            grouping: the run's.

        Raises:
            FederationError: a stage out of order, or a group that is too small to hide an update.
        """
        self._check_order(SHARES)
        keys = [*mask_keys, *share_keys]
        if sorted(set(group)) != list(group) or not (
            len(group) == len(mask_keys) == len(share_keys)
        ):
            raise _refuse(f"the clients {list(group)} with {len(keys)} keys", "two keys for each")
        if self.client not in group:
            raise _refuse(f"the clients {list(group)}", f"client {self.client} among them")
        if len(group) < MIN_CLIENTS or n_clients < len(group):
            raise _refuse(f"{len(group)} clients of {n_clients}", f"{MIN_CLIENTS} or more")
        if reason := grouping.find_fault(n_clients, len(group) - 1):
            raise _refuse(
                f"{reason}, of {n_clients} clients", "enough neighbours to hide an update"
            )
        if len(set(keys)) < len(keys):
            raise _refuse("a public key twice", "fresh keys of each client")
        place = group.index(self.client)
        if (mask_keys[place], share_keys[place]) != self.public_keys:
            raise _refuse(f"other public keys of client {self.client}", "those that it has sent")
        pairs = dict(zip(group, zip(mask_keys, share_keys, strict=True), strict=True))
        if len(group) == n_clients and hash_keys(pairs) != keys_hash:
            raise _refuse("a hash of other public keys", "that of all clients of the round")
        self.n_clients, self.keys_hash = n_clients, keys_hash
        self.needed = grouping.count_needed(len(group))
        self.peers = [client for client in group if client != self.client]
        self.mask_keys = [key for key in mask_keys if key != mask_keys[place]]
        self.share_keys = [key for key in share_keys if key != share_keys[place]]
        seeds = dict(zip(group, split(self.seed, self.needed, len(group)), strict=True))
        parts = dict(zip(group, split(self.mask_key, self.needed, len(group)), strict=True))
        self.senders = [self.client]
        self.seed_shares, self.key_shares = [seeds[self.client]], [parts[self.client]]
        try:
            sealed = {
                peer: seal(
                    self.share_key, key, self._route(self.client, peer), seeds[peer] + parts[peer]
                )
                for peer, key in zip(self.peers, self.share_keys, strict=True)
            }
        except ValueError as error:
            raise _refuse(f"an invalid public key ({error})", "keys of X25519") from error
        self.stage = SHARES
        return sealed

    def open_shares(self, sealed: Mapping[int, bytes]) -> None:
        """Decrypt the neighbours' shares; neighbours without shares have dropped out.

        Raises:
            FederationError: a stage out of order, or shares that are too few, damaged or of others.
        """
        self._check_order(MASKED)
        if strangers := sorted(set(sealed) - set(self.peers)):
            raise _refuse(f"shares of client {strangers[0]}", f"of {self.peers}")
        if len(sealed) + 1 < self.needed:
            raise _refuse(f"shares of {len(sealed)} neighbours", f"of {self.needed - 1} or more")
        for peer, box in sorted(sealed.items()):
            key = self.share_keys[self.peers.index(peer)]
            try:
                plain = unseal(self.share_key, key, self._route(peer, self.client), box)
            except ValueError as error:
                raise _refuse(f"shares of client {peer}: {error}", "as they were sealed") from error
            self.senders.append(peer)
            self.seed_shares.append(plain[:SHARE_BYTES])
            self.key_shares.append(plain[SHARE_BYTES:])
        self.stage = MASKED

    def mask(self, words: Words, work: bytes, start: bytes) -> Words:
        """The client's words plus its own mask and one mask for each active neighbour.

        Args:
            work: hash of the server's description of the round's training.
            start: hash of the model at the start of the round.

        Raises:
            FederationError: a neighbour's public key is invalid.
        """
        self.start, self.own = start, hash_parts(words.tobytes())
        binding = hash_parts(work, self.keys_hash)
        n, masked = len(words), words + own_mask(self.seed, self.client, self.round, len(words))
        for peer, key in zip(self.peers, self.mask_keys, strict=True):
            if peer in self.senders:
                try:
                    masked += pair_mask(self.mask_key, self.client, key, peer, binding, n)
                except ValueError as error:
                    raise _refuse(f"an invalid public key ({error})", "X25519") from error
        return masked

    def reveal(
        self, sent: Sequence[int], dropped: Sequence[int], everybody: Sequence[int]
    ) -> list[bytes]:
        """Shares of the seeds of those that sent their vector, then of the others' mask keys.

        Args:
            everybody: all clients of the round that sent their vector.

        Raises:
            FederationError: a stage out of order, a client in both lists or outside the group, or
                too few clients left.
        """
        self._check_order(UNMASK)
        if both := sorted(set(sent) & set(dropped)):
            raise _refuse(f"both shares of client {both[0]}", "one: both would unmask it")
        if strangers := sorted({*sent, *dropped} - set(self.senders)):
            raise _refuse(f"shares of client {strangers[0]}", f"of {self.senders}")
        if self.client not in sent or len(set(sent)) < self.needed:
            raise _refuse(
                f"{len(set(sent))} clients left in the group of client {self.client}",
                f"{self.needed} or more, and itself among them",
            )
        if set(sent) != set(everybody) & set(self.senders):
            raise _refuse(f"the clients {list(everybody)} in the sum", f"{list(sent)} among them")
        seeds = dict(zip(self.senders, self.seed_shares, strict=True))
        parts = dict(zip(self.senders, self.key_shares, strict=True))
        self.stage = UNMASK
        return [*(seeds[client] for client in sent), *(parts[client] for client in dropped)]

    def hash_sum(self, everybody: Sequence[int]) -> bytes:
        """Hash of a sum: the clients in it, and this client's contribution."""
        return hash_parts(hash_clients(everybody), self.own)

    def _check_order(self, stage: str) -> None:
        if STAGES.index(stage) != STAGES.index(self.stage) + 1:
            raise _refuse(
                f"stage {stage!r} of round {self.round + 1} after {self.stage!r}",
                "each stage once, in their order",
            )

    def _route(self, sender: int, receiver: int) -> str:
        return f"from {sender} to {receiver} in round {self.round}"


def keep(participant: Participant, state: RecordDict) -> None:
    """Keep the state for the next stage; after the last stage, keep client and round only."""
    if participant.stage == UNMASK:
        participant = Participant(participant.client, participant.round, UNMASK, b"", b"", b"")
    state[SECURE] = ConfigRecord(dataclasses.asdict(participant))


def recall(state: RecordDict) -> Participant | None:
    """The participant in its last round; None before the first."""
    record = state.config_records.get(SECURE)
    return None if record is None else Participant(**record)  # type: ignore[arg-type]


def begin_round(state: RecordDict, client: int, round_number: int) -> Participant:
    """A participant with fresh secrets.

    Raises:
        FederationError: the round has begun before. Two sums of one round over different clients
            would reveal their difference.
    """
    last = recall(state)
    if last is not None and round_number <= last.round:
        raise _refuse(
            f"stage {KEYS!r} of round {round_number + 1} after round {last.round + 1}",
            "each round once, in their order",
        )
    return Participant.begin(client, round_number)


def find_participant(state: RecordDict, client: int, round_number: int) -> Participant:
    """The participant that the message addresses.

    Raises:
        FederationError: this node is not in that round, for example after a restart.
    """
    found = recall(state)
    if found is None or (found.client, found.round) != (client, round_number):
        raise _refuse(
            f"client {client} in round {round_number + 1}, which this node does not know",
            "a node that has taken part since the round's first stage",
        )
    return found


def _refuse(found: str, expected: str) -> FederationError:
    return FederationError(
        where="the server's message",
        shareable=True,
        found=found,
        expected=expected,
        next_step="this node sends no data in this round; ask the server's operator",
    )
