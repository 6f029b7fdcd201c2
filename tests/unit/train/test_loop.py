"""The rounds: what is recorded, when it is saved, and where a resumed run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from fedapt.core.config import TrainConfig
from fedapt.core.report import Reporter
from fedapt.train.client import ClientUpdate, Learned
from fedapt.train.loop import Progress, run_rounds


class AddingEngine:
    """Two clients: one adds 1 and has 10 images, the other adds 3 and has 30."""

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def train_round(self, start: Learned, round_number: int) -> Sequence[ClientUpdate]:
        self.rounds.append(round_number)
        return [
            ClientUpdate(
                Learned(start.context + step, start.adaptive_network - step),
                n_samples=10 * step,
                loss=float(step),
            )
            for step in (1, 3)
        ]


class Listener(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int, str]] = []

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        self.steps.append((task, done, total, note))


START = Progress(Learned(torch.zeros(2, 3, 4), torch.zeros(2, 5)), 0, ())


def measure(learned: Learned) -> dict[str, float]:
    return {"photo": float(learned.context.flatten()[0]) / 10, "sketch": 0.5}


def run(
    start: Progress = START, engine: AddingEngine | None = None, **config: object
) -> tuple[Progress, list[Progress]]:
    saved: list[Progress] = []
    train = dataclasses.replace(TrainConfig(rounds=3), **config)
    end = run_rounds(engine or AddingEngine(), start, train, measure, saved.append, Reporter())
    return end, saved


def test_every_round_averages_and_goes_on_from_there() -> None:
    end, saved = run()
    assert end.rounds == 3
    assert torch.equal(end.learned.context, torch.full((2, 3, 4), 6.0))  # 2 a round
    assert torch.equal(end.learned.adaptive_network, torch.full((2, 5), -6.0))
    assert [float(p.learned.context[0, 0, 0]) for p in saved] == [2, 4, 6]


def test_the_weighting_is_that_of_the_configuration() -> None:
    end, _ = run(weighting="samples")
    assert torch.equal(end.learned.context, torch.full((2, 3, 4), 7.5))  # (10 + 90) / 40 a round


def test_a_record_has_these_fields() -> None:
    (record, *_), seconds = run(rounds=1)[0].records, ("seconds", "evaluation_seconds")
    assert {name: value for name, value in record.items() if name not in seconds} == {
        "round": 1,
        "loss": 2.5,  # (10 * 1 + 30 * 3) / 40
        "accuracy": {"photo": 0.2, "sketch": 0.5},
        "mean_accuracy": 0.35,
        "bytes_sent": 2 * 2 * 4 * (2 * 3 * 4 + 2 * 5),
    }
    assert all(0 <= record[name] < 10 for name in seconds)


def test_bytes_sent_are_v_and_q_down_and_up_for_every_client() -> None:
    assert run()[0].records[2]["bytes_sent"] == 544
    shared = Progress(Learned(torch.zeros(3, 4), torch.zeros(2, 5)), 0, ())
    assert run(shared)[0].records[2]["bytes_sent"] == 2 * 2 * 4 * (12 + 10)


def test_what_is_measured_is_the_average() -> None:
    accuracies = [record["accuracy"]["photo"] for record in run()[0].records]
    assert accuracies == pytest.approx([0.2, 0.4, 0.6])


def test_nothing_to_measure_is_no_error() -> None:
    end = run_rounds(
        AddingEngine(), START, TrainConfig(rounds=1), lambda _: {}, lambda _: None, Reporter()
    )
    assert (end.records[0]["accuracy"], end.records[0]["mean_accuracy"]) == ({}, 0.0)


def test_save_is_called_after_every_round_with_all_records() -> None:
    end, saved = run()
    assert [p.rounds for p in saved] == [1, 2, 3]
    assert [[record["round"] for record in p.records] for p in saved] == [[1], [1, 2], [1, 2, 3]]
    assert saved[-1] is end


def test_a_resumed_run_ends_where_an_unbroken_one_does() -> None:
    unbroken, saved = run()
    engine = AddingEngine()
    resumed, saved_later = run(saved[0], engine)
    assert engine.rounds == [1, 2]  # the first round is done
    assert [p.rounds for p in saved_later] == [2, 3]
    assert torch.equal(resumed.learned.context, unbroken.learned.context)
    assert [record["round"] for record in resumed.records] == [1, 2, 3]
    assert resumed.records[0] is saved[0].records[0]


def test_a_finished_run_does_nothing() -> None:
    unbroken, _ = run()
    engine = AddingEngine()
    end, saved = run(unbroken, engine)
    assert end is unbroken
    assert (engine.rounds, saved) == ([], [])


def test_an_interrupted_round_is_not_saved() -> None:
    class Interrupted(AddingEngine):
        """Stops in its second round."""

        def train_round(self, start: Learned, round_number: int) -> Sequence[ClientUpdate]:
            if round_number == 1:
                raise KeyboardInterrupt
            return super().train_round(start, round_number)

    saved: list[Progress] = []
    with pytest.raises(KeyboardInterrupt):
        run_rounds(Interrupted(), START, TrainConfig(rounds=3), measure, saved.append, Reporter())
    assert [p.rounds for p in saved] == [1]


def test_progress_is_told_with_its_figures() -> None:
    listener = Listener()
    run_rounds(AddingEngine(), START, TrainConfig(rounds=2), measure, lambda _: None, listener)
    assert listener.steps == [
        ("rounds", 1, 2, "loss 2.500, mean 35.0 %"),
        ("rounds", 2, 2, "loss 2.500, mean 45.0 %"),
    ]
