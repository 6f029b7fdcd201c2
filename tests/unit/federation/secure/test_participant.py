"""What a client refuses in a secure round."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedapt.core.errors import FederationError
from fedapt.federation.flower.secure.binding import hash_keys
from fedapt.federation.flower.secure.group import Grouping
from fedapt.federation.flower.secure.masks import draw_key, expand, own_mask, public_key
from fedapt.federation.flower.secure.participant import (
    Participant,
    begin_round,
    find_participant,
    keep,
    recall,
)
from fedapt.federation.flower.secure.shares import combine

GROUPING = Grouping(2 / 3, 0, 1 / 3, 0.1)
WORK, START = b"work", b"start"
N = 11


class Four:
    """Four clients with the numbers 0, 2, 3 and 7, as far as they have come."""

    def __init__(self, round_number: int = 1) -> None:
        self.all = {i: Participant.begin(i, round_number) for i in (0, 2, 3, 7)}
        self.group = list(self.all)
        self.mask_keys = [p.public_keys[0] for p in self.all.values()]
        self.share_keys = [p.public_keys[1] for p in self.all.values()]

    def deal(self) -> dict[int, dict[int, bytes]]:
        """Sender -> receiver -> sealed shares."""
        return {i: p.deal(*self.asked()) for i, p in self.all.items()}

    def leave(self, client: int, sent: list[int], dropped: list[int]) -> list[bytes]:
        return self.all[client].reveal(sent, dropped, sent)

    def asked(self) -> tuple[int, list[int], list[bytes], list[bytes], bytes, Grouping]:
        return 4, self.group, self.mask_keys, self.share_keys, self.keys_hash(), GROUPING

    def keys_hash(self) -> bytes:
        keys = zip(self.mask_keys, self.share_keys, strict=True)
        return hash_keys(dict(zip(self.group, keys, strict=True)))

    def open(self, without: tuple[int, ...] = ()) -> None:
        sealed = self.deal()
        for i, p in self.all.items():
            if i not in without:
                p.open_shares({j: sealed[j][i] for j in self.group if j not in (i, *without)})


def refuse(found: str, act: Callable[[], object]) -> None:
    with pytest.raises(FederationError) as caught:
        act()
    assert caught.value.where == "the server's message"  # which may go to the server
    assert found in f"{caught.value.found}; {caught.value.expected}"


def test_a_round_of_four_without_a_server() -> None:
    four = Four()
    four.open()
    words = {i: np.full(N, i, np.uint64) for i in four.group}
    total = np.sum(
        [p.mask(words[i], WORK, START) for i, p in four.all.items()], axis=0, dtype=np.uint64
    )
    sent, dropped = four.group, []
    shares = {i: p.reveal(sent, dropped, sent) for i, p in four.all.items()}
    for place, owner in enumerate(four.group):
        for some in itertools.combinations(four.group, 3):
            assert combine([shares[i][place] for i in some]) == four.all[owner].seed
        total -= own_mask(four.all[owner].seed, owner, 1, N)
    assert total.tolist() == [0 + 2 + 3 + 7] * N


def test_who_drops_out_is_unmasked_and_nobody_else() -> None:
    four = Four()
    four.open()
    shares = [four.all[i].reveal([0, 3, 7], [2], [0, 3, 7]) for i in (0, 3, 7)]
    assert combine([s[3] for s in shares]) == four.all[2].mask_key
    assert combine([s[0] for s in shares]) == four.all[0].seed
    secrets = {p.mask_key for p in four.all.values()} | {p.seed for p in four.all.values()}
    assert len(secrets) == 8


def test_each_stage_once_in_order() -> None:
    four = Four()
    first = four.all[0]
    refuse("stage 'unmask' of round 2 after 'keys'", lambda: four.leave(0, four.group, []))
    refuse("stage 'masked' of round 2 after 'keys'", lambda: first.open_shares({}))
    four.open()
    refuse("stage 'shares' of round 2 after 'masked'", lambda: first.deal(*four.asked()))
    refuse("stage 'masked' of round 2 after 'masked'", lambda: first.open_shares({}))
    first.reveal(four.group, [], four.group)
    refuse("stage 'unmask' of round 2 after 'unmask'", lambda: four.leave(0, [0, 2, 3], [7]))


def test_groups_that_would_not_hide_it() -> None:
    def deal(**changed: object) -> Callable[[], object]:
        four = Four()
        four.mask_keys[0], four.share_keys[0] = mine.public_keys
        values = {"n_clients": 4, "group": four.group, "mask_keys": four.mask_keys}
        values |= {"share_keys": four.share_keys, "grouping": GROUPING}
        if len(changed.get("share_keys", ())) == 4:  # type: ignore[arg-type]
            four.share_keys = changed["share_keys"]  # type: ignore[assignment]
        values |= {"keys_hash": four.keys_hash()} | changed
        return lambda: mine.deal(**values)  # type: ignore[arg-type]

    mine = Participant.begin(0, 1)
    keys = [public_key(draw_key()) for _ in range(8)]
    two = {
        "mask_keys": [mine.public_keys[0], keys[0]],
        "share_keys": [mine.public_keys[1], keys[1]],
    }
    refuse("client 0 among them", deal(group=[1, 2, 3, 7]))
    refuse("2 clients of 4; 3 or more", deal(group=[0, 2], **two))
    refuse("4 clients of 3", deal(n_clients=3))
    refuse("the clients [0, 2, 2, 3] with 8 keys", deal(group=[0, 2, 2, 3]))
    refuse("the clients [2, 0, 3, 7] with 8 keys", deal(group=[2, 0, 3, 7]))
    refuse("with 7 keys; two keys for each", deal(share_keys=keys[:3]))
    refuse("a public key twice", deal(mask_keys=[mine.public_keys[0], *keys[:2], keys[1]]))
    mixed = [mine.public_keys[0], *keys[:3]]
    refuse(
        "a public key twice", deal(mask_keys=mixed, share_keys=[mine.public_keys[1], *keys[2:5]])
    )
    refuse("other public keys of client 0", deal(mask_keys=keys[:4]))
    zero = [mine.public_keys[1], bytes(32), *keys[:2]]
    refuse("an invalid public key", deal(share_keys=zero))
    refuse("a hash of other public keys", deal(keys_hash=bytes(32)))
    # two neighbours of eight clients: both together would isolate it
    three = {
        "group": [0, 2, 3],
        "mask_keys": [mine.public_keys[0], *keys[:2]],
        "share_keys": [mine.public_keys[1], *keys[2:4]],
    }
    refuse("2 neighbours, which colluders can isolate", deal(n_clients=8, **three))
    assert mine.stage == "keys"
    assert len(deal()()) == 3  # type: ignore[arg-type]


def test_shares_that_do_not_fit() -> None:
    four = Four()
    sealed = four.deal()
    mine = four.all[0]
    good = {j: sealed[j][0] for j in (2, 3, 7)}
    refuse("shares of client 5", lambda: mine.open_shares(good | {5: good[2]}))
    refuse("shares of 1 neighbours; of 2 or more", lambda: mine.open_shares({2: good[2]}))
    swapped = {2: good[3], 3: good[2]}
    refuse(
        "shares of client 2: sealed shares that cannot be decrypted",
        lambda: mine.open_shares(swapped),
    )


def test_a_public_mask_key_that_is_none() -> None:
    four = Four()
    four.mask_keys[1] = bytes(32)
    sealed = {i: four.all[i].deal(*four.asked()) for i in (0, 3, 7)}
    mine = four.all[0]
    mine.open_shares({j: sealed[j][0] for j in (3, 7)})
    assert len(mine.mask(np.zeros(N, np.uint64), WORK, START)) == N  # client 2 has dropped out
    mine.senders.append(2)
    refuse("an invalid public key", lambda: mine.mask(np.zeros(N, np.uint64), WORK, START))


def test_what_would_unmask_somebody() -> None:
    four = Four()
    four.open()
    refuse("both shares of client 3", lambda: four.leave(0, [0, 2, 3], [3, 7]))
    refuse("2 clients left in the group of client 0; 3", lambda: four.leave(0, [0, 2], [3, 7]))
    refuse("2 clients left", lambda: four.leave(0, [0, 2, 2, 2], [3, 7]))
    refuse("3 or more, and itself among them", lambda: four.leave(0, [2, 3, 7], []))
    refuse("3 or more, and itself among them", lambda: four.leave(0, [2, 3, 7], [0]))
    refuse("shares of client 9", lambda: four.leave(0, [0, 2, 3], [9]))
    assert len(four.leave(0, [0, 2, 3], [7])) == 4


def test_one_that_never_dealt_is_not_unmasked() -> None:
    four = Four()
    four.open(without=(7,))
    refuse("shares of client 7", lambda: four.all[0].reveal([0, 2, 3], [7], [0, 2, 3]))
    assert len(four.all[0].reveal([0, 2, 3], [], [0, 2, 3])) == 3


def test_clients_that_were_sent_different_models_do_not_cancel() -> None:
    for works, cancels in (([WORK] * 4, True), ([WORK, WORK, b"other", WORK], False)):
        four = Four()
        four.open()
        total = np.zeros(N, np.uint64)
        for (i, p), work in zip(four.all.items(), works, strict=True):
            total += p.mask(np.full(N, i, np.uint64), work, START)
            total -= own_mask(p.seed, i, 1, N)
        assert (total == 0 + 2 + 3 + 7).all() == cancels
        assert (total == 0 + 2 + 3 + 7).any() == cancels


def test_who_is_in_the_sum_is_told_alike() -> None:
    four = Four()
    four.open()
    mine = four.all[0]
    refuse("the clients [0, 2, 3, 7] in the sum", lambda: mine.reveal([0, 2, 3], [7], four.group))
    mine.mask(np.zeros(N, np.uint64), WORK, START)
    assert mine.hash_sum([0, 2, 3]) == mine.hash_sum([3, 2, 0])
    assert mine.hash_sum([0, 2, 3]) != mine.hash_sum([0, 2, 3, 7])
    before = mine.hash_sum([0, 2, 3])
    mine.mask(np.ones(N, np.uint64), WORK, START)  # another update
    assert mine.hash_sum([0, 2, 3]) != before


def test_a_node_remembers_and_forgets() -> None:
    state = RecordDict()
    refuse("which this node does not know", lambda: find_participant(state, 0, 1))
    four = Four()
    four.open()
    mine = four.all[0]
    keep(mine, state)
    assert repr(mine.seed)[2:-1] in repr(dict(state["secure"]))  # what is there can be found
    assert recall(state) == mine
    assert find_participant(state, 0, 1) == mine
    refuse("client 0 in round 3, which", lambda: find_participant(state, 0, 2))
    refuse("client 2 in round 2, which", lambda: find_participant(state, 2, 1))

    mine.reveal(four.group, [], four.group)
    keep(mine, state)
    record = state["secure"]
    assert isinstance(record, ConfigRecord)
    kept = repr(dict(record))
    for secret in (mine.seed, mine.mask_key, mine.share_key, mine.seed_shares[1]):
        assert repr(secret)[2:-1] not in kept
    done = find_participant(state, 0, 1)
    refuse("stage 'unmask' of round 2 after 'unmask'", lambda: done.reveal([0], [], [0]))


def test_a_round_is_not_repeated() -> None:
    state = RecordDict()
    keep(begin_round(state, 0, 4), state)
    refuse("stage 'keys' of round 5 after round 5", lambda: begin_round(state, 0, 4))
    refuse("stage 'keys' of round 4 after round 5", lambda: begin_round(state, 1, 3))
    assert begin_round(state, 0, 5).round == 5


def test_secrets_are_fresh() -> None:
    some = [Participant.begin(0, 0) for _ in range(3)]
    secrets = {s for p in some for s in (p.seed, p.mask_key, p.share_key)}
    assert len(secrets) == 9
    assert all(len(expand(s, 2)) == 2 for s in secrets)
