"""The local engine: what a client computes does not depend on who runs beside it."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from fedapt.core.config import TrainConfig
from fedapt.core.seeds import child_seed
from fedapt.data.domains import Labelled
from fedapt.federation.local import LocalClient, LocalEngine, torch_threads
from fedapt.model.backbone import Backbone
from fedapt.model.prompted_clip import PromptedText, prompted_text
from fedapt.train.client import ClientTask, ClientUpdate, Learned, draw_batches, train_client

NAMES = ("mug", "bike", "red square")
M, W, D, N = 2, 32, 32, 3
SIZES = (5, 17, 9)  # the largest is neither first nor last
TRAIN = TrainConfig(batch_size=4, local_epochs=2, lr=0.1)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


START = Learned(0.02 * draw(3, M, W, seed=0), 0.1 * draw(N, D, seed=1))


@pytest.fixture(scope="module")
def text(tiny_backbone: Backbone) -> PromptedText:
    return prompted_text(tiny_backbone, NAMES, M)


@pytest.fixture(scope="module")
def clients(text: PromptedText) -> list[LocalClient]:
    keys = draw(N, M, W, seed=2).abs()
    return [
        LocalClient(
            ClientTask(text, keys, n, 10.0, TRAIN),
            Labelled(draw(size, D, seed=3 + n), torch.arange(size) % 3),
        )
        for n, size in enumerate(SIZES)
    ]


def assert_same(found: ClientUpdate, expected: ClientUpdate) -> None:
    # another number of threads may round a sum differently; another batch is off by 1e-3
    for name in ("context", "adaptive_network"):
        pair = getattr(found.learned, name), getattr(expected.learned, name)
        torch.testing.assert_close(*pair, rtol=0, atol=1e-6)
    assert found.n_samples == expected.n_samples
    assert found.loss == pytest.approx(expected.loss, abs=1e-5)


def direct(client: LocalClient, index: int, round_number: int, seed: int = 7) -> ClientUpdate:
    drawn = child_seed(seed, "batches", round_number, index)
    with torch_threads(1):
        return train_client(client.task, START, draw_batches(client.data, TRAIN, drawn))


def test_replies_stand_in_the_order_of_the_clients(clients: list[LocalClient]) -> None:
    replies = LocalEngine(clients, seed=7).train_round(START, 0)
    assert [reply.n_samples for reply in replies] == [2 * size for size in SIZES]
    for index, reply in enumerate(replies):
        assert_same(reply, direct(clients[index], index, 0))


def test_one_client_alone_is_train_client(clients: list[LocalClient]) -> None:
    with torch_threads(1):
        (reply,) = LocalEngine(clients[:1], seed=7).train_round(START, 3)
    assert_same(reply, direct(clients[0], 0, 3))


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_the_number_of_cores_changes_no_result(
    clients: list[LocalClient], monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    replies = LocalEngine(clients, seed=7).train_round(START, 1)
    for index, reply in enumerate(replies):
        assert_same(reply, direct(clients[index], index, 1))


def test_a_round_has_batches_of_its_own(clients: list[LocalClient]) -> None:
    engine = LocalEngine(clients, seed=7)
    first, again, other = (engine.train_round(START, number)[1] for number in (0, 0, 1))
    assert_same(again, first)
    assert float((other.learned.context - first.learned.context).abs().max()) > 1e-5
    reseeded = LocalEngine(clients, seed=8).train_round(START, 0)[1]
    assert not torch.equal(reseeded.learned.context, first.learned.context)


def test_clients_of_equal_data_draw_different_batches(clients: list[LocalClient]) -> None:
    twins = LocalEngine([clients[1], clients[1]], seed=7).train_round(START, 0)
    assert not torch.equal(twins[0].learned.context, twins[1].learned.context)


def test_the_aggregate_is_not_changed(clients: list[LocalClient]) -> None:
    before = START.context.clone(), START.adaptive_network.clone()
    LocalEngine(clients, seed=7).train_round(START, 0)
    assert torch.equal(START.context, before[0])
    assert torch.equal(START.adaptive_network, before[1])


def test_torchs_threads_are_set_back(clients: list[LocalClient]) -> None:
    before = torch.get_num_threads()
    LocalEngine(clients, seed=7).train_round(START, 0)
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


def test_an_error_in_a_client_reaches_the_caller(clients: list[LocalClient]) -> None:
    broken = LocalClient(
        clients[0].task, Labelled(draw(4, D + 1, seed=0), torch.zeros(4, dtype=torch.int64))
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        LocalEngine([clients[1], broken], seed=7).train_round(START, 0)
