"""The local engine: what a client computes does not depend on who runs beside it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedapt.core.config import Config, PromptConfig, TrainConfig
from fedapt.core.errors import FederationError
from fedapt.core.seeds import child_seed
from fedapt.data.domains import ImageSet, ImageTable
from fedapt.data.partition import Client
from fedapt.federation import local
from fedapt.federation.local import LocalEngine
from fedapt.model.backbone import Backbone
from fedapt.model.threads import torch_threads
from fedapt.training.client import ClientUpdate, draw_batches, train_client
from fedapt.training.methods import Learned, Objective, Setting
from fedapt.training.methods.fedapt import ADAPTIVE_NETWORK, META_PROMPT, FedAPT
from fedapt.training.methods.local import CONTEXTS, Local

NAMES = ("mug", "bike", "red square")
M, W, D, N = 2, 32, 32, 3
SIZES = (5, 17, 9)  # the largest is neither first nor last
TRAIN = TrainConfig(batch_size=4, local_epochs=2, lr=0.1, seed=7)
CONFIG = Config(prompt=PromptConfig(context_length=M), train=TRAIN)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


START = {META_PROMPT: 0.02 * draw(3, M, W, seed=0), ADAPTIVE_NETWORK: 0.1 * draw(N, D, seed=1)}
TABLE = ImageTable(
    tuple(Path(f"{i}.png") for i in range(sum(SIZES))),
    torch.cat([draw(size, D, seed=3 + n) for n, size in enumerate(SIZES)]),
    torch.cat([torch.arange(size) % 3 for size in SIZES]),
)


@pytest.fixture(scope="module")
def method(tiny_backbone: Backbone) -> FedAPT:
    parts = torch.split(torch.arange(sum(SIZES)), SIZES)
    clients = (
        Client(n, f"client {n}", n, n, ImageSet(TABLE, rows)) for n, rows in enumerate(parts)
    )
    return FedAPT(
        Setting(
            config=CONFIG,
            backbone=tiny_backbone,
            class_names=NAMES,
            n_keys=N,
            clients=tuple(clients),
            table=TABLE,
            views=lambda images, view: images.load().features,
            known_keys=draw(N, M, W, seed=2).abs(),
        )
    )


@pytest.fixture(scope="module")
def clients(method: FedAPT) -> tuple[Client, ...]:
    return method.setting.clients


def train_round(
    method: FedAPT,
    clients: Sequence[Client],
    round_number: int,
    start: Learned = START,
    **config: Any,
) -> dict[int, ClientUpdate]:
    """The replies by client."""
    engine = LocalEngine(
        method, dataclasses.replace(CONFIG, train=dataclasses.replace(TRAIN, **config))
    )
    replies = list(engine.train_clients(start, clients, round_number))
    found = {reply.client: reply for reply in replies}
    assert len(found) == len(replies) == len(clients)
    return found


def assert_same(found: ClientUpdate, expected: ClientUpdate) -> None:
    # another number of threads may round a sum differently; another batch is off by 1e-3
    assert found.learned.keys() == expected.learned.keys()
    for name, tensor in found.learned.items():
        torch.testing.assert_close(tensor, expected.learned[name], rtol=0, atol=1e-6)
    assert found.client == expected.client
    assert found.n_samples == expected.n_samples
    assert found.loss == pytest.approx(expected.loss, abs=1e-5)


def direct(method: FedAPT, client: Client, round_number: int, **config: Any) -> ClientUpdate:
    drawn = child_seed(7, "batches", round_number, client.index)
    train = dataclasses.replace(TRAIN, **config)
    with torch_threads(1):
        update = train_client(
            method.objective(START, client, round_number),
            START,
            draw_batches(client.data, train, drawn),
            train,
            client=client.index,
        )
    return dataclasses.replace(update, n_samples=len(client.data))


def test_replies_come_largest_client_first(method: FedAPT, clients: tuple[Client, ...]) -> None:
    replies = list(LocalEngine(method, CONFIG).train_clients(START, clients, 0))
    assert [reply.client for reply in replies] == [1, 2, 0]
    assert [reply.n_samples for reply in replies] == [SIZES[i] for i in (1, 2, 0)]
    for reply in replies:
        assert_same(reply, direct(method, clients[reply.client], 0))


def test_one_client_alone_is_train_client(method: FedAPT, clients: tuple[Client, ...]) -> None:
    for client in clients:  # whichever it is among all
        with torch_threads(1):
            (reply,) = LocalEngine(method, CONFIG).train_clients(START, [client], 3)
        assert_same(reply, direct(method, client, 3))


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_the_number_of_cores_changes_no_result(
    method: FedAPT, clients: tuple[Client, ...], monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: cores)
    for index, reply in train_round(method, clients, 1).items():
        assert_same(reply, direct(method, clients[index], 1))


def test_a_round_has_batches_of_its_own(method: FedAPT, clients: tuple[Client, ...]) -> None:
    first, again, other = (train_round(method, clients, number)[1] for number in (0, 0, 1))
    assert_same(again, first)
    gap = other.learned[META_PROMPT] - first.learned[META_PROMPT]
    assert float(gap.abs().max()) > 1e-5
    reseeded = train_round(method, clients, 0, seed=8)[1]
    assert not torch.equal(reseeded.learned[META_PROMPT], first.learned[META_PROMPT])


def test_clients_of_equal_data_draw_different_batches(
    method: FedAPT, clients: tuple[Client, ...]
) -> None:
    twins = train_round(method, [clients[1], dataclasses.replace(clients[1], index=0)], 0)
    assert not torch.equal(twins[0].learned[META_PROMPT], twins[1].learned[META_PROMPT])


def test_a_client_trains_under_its_own_key(method: FedAPT, clients: tuple[Client, ...]) -> None:
    own = train_round(method, clients[:1], 0)[0]
    (other,) = train_round(method, [dataclasses.replace(clients[0], key=2)], 0).values()
    assert not torch.equal(own.learned[META_PROMPT], other.learned[META_PROMPT])
    (same,) = train_round(method, [dataclasses.replace(clients[0], domain=2)], 0).values()
    assert_same(same, own)


def test_the_settings_reach_every_client(method: FedAPT, clients: tuple[Client, ...]) -> None:
    limited = train_round(method, clients, 0, images_per_round=6)
    for index, reply in limited.items():  # it weighs by all of its images
        assert_same(reply, direct(method, clients[index], 0, images_per_round=6))
        assert reply.n_samples == SIZES[index] != 6
    slow = train_round(method, clients, 3, schedule="cosine", rounds=4)
    fast = train_round(method, clients, 3)
    for index in slow:
        far = [
            float((replies[index].learned[META_PROMPT] - START[META_PROMPT]).norm())
            for replies in (slow, fast)
        ]
        assert far[0] < 0.5 * far[1]


def test_the_aggregate_is_not_changed(method: FedAPT, clients: tuple[Client, ...]) -> None:
    before = {name: tensor.clone() for name, tensor in START.items()}
    train_round(method, clients, 0)
    assert all(torch.equal(START[name], tensor) for name, tensor in before.items())


def test_a_client_has_its_own_slices_alone(method: FedAPT, clients: tuple[Client, ...]) -> None:
    alone = Local(method.setting)
    start = {CONTEXTS: 0.02 * draw(3, 3, M, W, seed=5)}
    replies = {r.client: r for r in LocalEngine(alone, CONFIG).train_clients(start, clients, 0)}
    changed = {CONTEXTS: start[CONTEXTS].clone()}
    changed[CONTEXTS][1] += 1
    again = {r.client: r for r in LocalEngine(alone, CONFIG).train_clients(changed, clients, 0)}
    for index, reply in replies.items():
        assert reply.learned[CONTEXTS].shape == (3, M, W)
        is_same = torch.equal(again[index].learned[CONTEXTS], reply.learned[CONTEXTS])
        assert is_same == (index != 1)


def count_at_once(method: FedAPT, clients: Sequence[Client], expected: int) -> int:
    """How many clients really run at the same time, where each waits for as many as expected."""
    running, most = 0, 0
    lock, full = threading.Lock(), threading.Event()

    class Waiting(FedAPT):
        """Notices who runs beside it."""

        def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                if running == expected:
                    full.set()
            full.wait(5)
            time.sleep(0.05)  # for one too many
            with lock:
                running -= 1
            return super().objective(start, client, round_number)

    list(LocalEngine(Waiting(method.setting), CONFIG).train_clients(START, clients, 0))
    return most


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 2), (3, 3), (8, 3)])
def test_as_many_clients_run_as_there_are_cores(
    method: FedAPT,
    clients: tuple[Client, ...],
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    expected: int,
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: cores)
    assert count_at_once(method, clients, expected) == expected


@pytest.mark.parametrize(
    ("step", "memory", "expected"),
    [
        (1 << 30, 64 << 30, 3),
        (2 << 30, 64 << 30, 2),
        (3 << 30, 64 << 30, 1),  # 4 GiB for all
        (1 << 30, 4 << 30, 2),  # half of the memory
        (9 << 30, 4 << 30, 1),
    ],
)
def test_parallel_steps_fit_into_their_memory(
    method: FedAPT,
    clients: tuple[Client, ...],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    memory: int,
    expected: int,
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    monkeypatch.setattr(local, "usable_memory", lambda: memory)
    monkeypatch.setattr(FedAPT, "step_bytes", step)
    assert count_at_once(method, clients, expected) == expected


def test_a_method_that_needs_the_machine_for_itself_has_it(
    method: FedAPT, clients: tuple[Client, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    monkeypatch.setattr(FedAPT, "side_by_side", False)
    assert count_at_once(method, clients, 1) == 1


@pytest.mark.parametrize(("steps", "expected"), [(1.5, 1), (4.5, 2), (100, 3)])
def test_no_more_clients_run_than_half_of_the_memory_takes(
    method: FedAPT,
    clients: tuple[Client, ...],
    monkeypatch: pytest.MonkeyPatch,
    steps: float,
    expected: int,
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    monkeypatch.setattr(local, "usable_memory", lambda: int(steps * method.step_bytes))
    assert count_at_once(method, clients, expected) == expected


def test_replies_that_wait_for_a_slow_client_are_few(
    method: FedAPT, clients: tuple[Client, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: 2)
    begun, go_on = [], threading.Event()

    class Slow(FedAPT):
        """The first client waits until the others have had time to be done."""

        def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
            begun.append(client.index)
            if client.index == 0:
                go_on.wait(60)
            return super().objective(start, client, round_number)

    many = [dataclasses.replace(clients[1], index=i) for i in range(40)]
    replies = LocalEngine(Slow(method.setting), CONFIG).train_clients(START, many, 0)
    timer = threading.Timer(2.0, go_on.set)
    timer.start()
    first = next(replies)
    timer.join()
    assert first.client == 0
    assert 1 < len(begun) <= 4 * 2
    assert sorted(reply.client for reply in replies) == list(range(1, 40))


def test_torchs_threads_are_set_back(method: FedAPT, clients: tuple[Client, ...]) -> None:
    before = torch.get_num_threads()
    train_round(method, clients, 0)
    assert torch.get_num_threads() == before


def test_torchs_threads_are_set_back_where_replies_are_left(
    method: FedAPT, clients: tuple[Client, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(local, "usable_cores", lambda: 3 * (before + 1))
    replies = LocalEngine(method, CONFIG).train_clients(START, clients, 0)
    next(iter(replies))
    assert torch.get_num_threads() == before + 1
    replies.close()
    assert torch.get_num_threads() == before


def fail_inside(count: int) -> None:
    with torch_threads(count):
        assert torch.get_num_threads() == count
        raise ZeroDivisionError("in the block")


def test_torchs_threads_are_set_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError, match="in the block"):
        fail_inside(before + 1)
    assert torch.get_num_threads() == before


def test_an_error_in_a_client_reaches_the_caller(
    method: FedAPT, clients: tuple[Client, ...]
) -> None:
    wide = ImageTable((), draw(4, D + 1, seed=0), torch.zeros(4, dtype=torch.int64))
    broken = dataclasses.replace(clients[0], data=ImageSet(wide, torch.arange(4)))
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train_round(method, [clients[1], broken], 0)
    assert torch.get_num_threads() == before


def test_what_is_not_finite_is_told_with_round_and_client(
    method: FedAPT, clients: tuple[Client, ...]
) -> None:
    class Broken(FedAPT):
        """Gives no number at the last client."""

        def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
            loss = super().objective(start, client, round_number)
            factor = float("nan") if client.index == 2 else 1.0
            return lambda learned, batch: factor * loss(learned, batch)

    with pytest.raises(FederationError, match="round 5, client client 2: found a loss of nan;"):
        train_round(Broken(method.setting), clients, 4)


def test_a_round_is_the_mean_of_its_replies(method: FedAPT, clients: tuple[Client, ...]) -> None:
    replies = train_round(method, clients, 0)
    found = LocalEngine(method).run_round(START, clients, 0)
    for name, tensor in found.learned.items():
        mean = torch.stack([r.learned[name].double() for r in replies.values()]).mean(0)
        torch.testing.assert_close(tensor, mean.float(), rtol=0, atol=1e-6)
    assert found.n_images == sum(SIZES)
    losses = sum(r.loss * r.n_samples for r in replies.values())
    assert found.loss == pytest.approx(losses / sum(SIZES), abs=1e-5)
    # V [3, M, W] and Q [N, D] to each of three clients and back
    assert found.n_bytes == 2 * 3 * 4 * (3 * M * W + N * D)
    assert (found.refused, found.record, found.noise_multiplier) == ({}, {}, None)
