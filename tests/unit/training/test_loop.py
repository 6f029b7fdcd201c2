"""The rounds: what is recorded, when it is saved, and where a resumed run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedapt.core.config import Config, read_config
from fedapt.core.errors import FederationError
from fedapt.core.records import Record
from fedapt.core.report import Reporter
from fedapt.data.domains import ImageSet, ImageTable
from fedapt.data.partition import Client, ClientInfo
from fedapt.training.aggregate import aggregate
from fedapt.training.client import ClientUpdate
from fedapt.training.loop import Measure, Measured, Progress, RoundResult, mean, run_rounds
from fedapt.training.methods.base import Learned, Method, Objective, Predictor
from fedapt.training.privacy import find_epsilon

IMAGES = ImageSet(
    ImageTable((), torch.empty(0, 4), torch.empty(0, dtype=torch.int64)),
    torch.empty(0, dtype=torch.int64),
)
CLIENTS = tuple(Client(i, name, i, i, IMAGES) for i, name in enumerate(("photo", "sketch")))


class Adding(Method):
    """What is learned goes up with every step."""

    title = "adding"

    def __init__(self, clients: Sequence[Client] = CLIENTS) -> None:
        setting: Any = SimpleNamespace(clients=tuple(clients))
        super().__init__(setting)

    def begin(self) -> Learned:
        return dict(START.learned)

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        raise AssertionError("the engine below needs none")

    def predictor(self, learned: Learned) -> Predictor:
        raise AssertionError("measured by a function")


class AddingEngine:
    """Client 0 adds 1 and has 10 images, client 1 adds 3 and has 30."""

    def __init__(self, method: Method | None = None) -> None:
        self.method = method or Adding()
        self.config = Config()
        self.rounds: list[int] = []
        self.clients: list[list[int]] = []

    def run_round(
        self, start: Learned, clients: Sequence[ClientInfo], round_number: int
    ) -> RoundResult:
        self.rounds.append(round_number)
        self.clients.append([client.index for client in clients])
        updates = self.train_clients(start, clients, round_number)
        found = aggregate(self.config, self.method, start, clients, updates)
        multiplier = found.noise_multiplier
        return RoundResult(
            found.learned, found.loss, found.n_images, 544, noise_multiplier=multiplier
        )

    def train_clients(
        self, start: Learned, clients: Sequence[ClientInfo], round_number: int
    ) -> Iterator[ClientUpdate]:
        for client in clients:
            step = 1 + 2 * client.index
            share = self.method.share(start, client)
            learned = {
                name: tensor + (-step if name == "adaptive_network" else step)
                for name, tensor in share.items()
            }
            yield ClientUpdate(client.index, learned, n_samples=10 * step, loss=float(step))


class Listener(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int, str]] = []

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        self.steps.append((task, done, total, note))


START = Progress(
    {"meta_prompt": torch.zeros(2, 3, 4), "adaptive_network": torch.zeros(2, 5)}, 0, ()
)


def measure(learned: Learned, round_number: int) -> Measured:
    return Measured({"photo": float(learned["meta_prompt"].flatten()[0]) / 10, "sketch": 0.5}, {})


def configure(**settings: Any) -> Config:
    """Three rounds, each of them evaluated; names with `__` are of another section than train."""
    named = {"train.rounds": 3, "train.evaluate_every": 1}
    named |= {
        name.replace("__", ".") if "__" in name else f"train.{name}": value
        for name, value in settings.items()
    }
    return read_config(None, [], named)


def run(
    start: Progress = START,
    engine: AddingEngine | None = None,
    measured: Measure = measure,
    reporter: Reporter | None = None,
    **settings: Any,
) -> tuple[Progress, list[Progress]]:
    saved: list[Progress] = []
    engine = engine or AddingEngine()
    engine.config = configure(**settings)
    end = run_rounds(
        engine,
        engine.method,
        start,
        engine.config,
        measured,
        saved.append,
        reporter or Reporter(),
    )
    return end, saved


def test_every_round_averages_and_goes_on_from_there() -> None:
    end, saved = run()
    assert end.rounds == 3
    assert torch.equal(end.learned["meta_prompt"], torch.full((2, 3, 4), 6.0))  # 2 a round
    assert torch.equal(end.learned["adaptive_network"], torch.full((2, 5), -6.0))
    assert [float(p.learned["meta_prompt"][0, 0, 0]) for p in saved] == [2, 4, 6]


def test_the_weighting_is_that_of_the_configuration() -> None:
    end, _ = run(weighting="samples")
    # (10 + 90) / 40 a round
    assert torch.equal(end.learned["meta_prompt"], torch.full((2, 3, 4), 7.5))


def test_a_record_has_these_fields() -> None:
    (record, *_), seconds = run(rounds=1)[0].records, ("seconds", "evaluation_seconds")
    assert {name: value for name, value in record.items() if name not in seconds} == {
        "round": 1,
        "loss": 2.5,  # (10 * 1 + 30 * 3) / 40
        "clients": 2,
        "accuracy": {"photo": 0.2, "sketch": 0.5},
        "mean_accuracy": 0.35,
        "bytes_sent": 544,
    }
    assert all(0 <= record[name] < 10 for name in seconds)


def test_what_is_measured_is_the_average() -> None:
    accuracies = [record["accuracy"]["photo"] for record in run()[0].records]
    assert accuracies == pytest.approx([0.2, 0.4, 0.6])


def test_nothing_to_measure_is_no_error() -> None:
    end, _ = run(measured=lambda *_: Measured({}, {}), rounds=1)
    assert (end.records[0]["accuracy"], end.records[0]["mean_accuracy"]) == ({}, 0.0)
    assert "validation" not in end.records[0]
    assert end.best_round is None


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
    assert torch.equal(resumed.learned["meta_prompt"], unbroken.learned["meta_prompt"])
    assert [record["round"] for record in resumed.records] == [1, 2, 3]
    assert resumed.records[0] is saved[0].records[0]


def test_a_finished_run_does_nothing() -> None:
    unbroken, _ = run()
    engine = AddingEngine()
    end, saved = run(unbroken, engine)
    assert end is unbroken
    assert (engine.rounds, saved) == ([], [])


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        FederationError(where="round 2", found="a loss of nan", expected="", next_step=""),
    ],
)
def test_a_broken_round_is_not_saved(error: BaseException) -> None:
    class Broken(AddingEngine):
        """Stops in its second round, after the first reply."""

        def train_clients(
            self, start: Learned, clients: Sequence[ClientInfo], round_number: int
        ) -> Iterator[ClientUpdate]:
            for reply in super().train_clients(start, clients, round_number):
                yield reply
                if round_number == 1:
                    raise error

    saved: list[Progress] = []
    engine = Broken()
    with pytest.raises(type(error)):
        run_rounds(engine, engine.method, START, configure(), measure, saved.append, Reporter())
    assert [p.rounds for p in saved] == [1]
    assert float(saved[0].learned["meta_prompt"].max()) == 2.0


def test_progress_is_told_with_its_figures() -> None:
    listener = Listener()
    run(reporter=listener, rounds=2)
    assert listener.steps == [
        ("rounds", 1, 2, "loss 2.500, mean 35.0 %"),
        ("rounds", 2, 2, "loss 2.500, mean 45.0 %"),
    ]


# when it is evaluated


EVALUATED = {"accuracy", "mean_accuracy", "evaluation_seconds"}
ALWAYS = {"round", "loss", "clients", "seconds", "bytes_sent"}


@pytest.mark.parametrize(
    ("every", "rounds", "expected"),
    [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (5, 12, [5, 10, 12]), (5, 10, [5, 10]), (9, 4, [4])],
)
def test_every_so_many_rounds_and_the_last_are_evaluated(
    every: int, rounds: int, expected: list[int]
) -> None:
    seen: list[float] = []

    def count(learned: Learned, round_number: int) -> Measured:
        seen.append(float(learned["meta_prompt"].max()))
        assert seen[-1] == 2.0 * (round_number + 1)
        return measure(learned, round_number)

    end, saved = run(measured=count, evaluate_every=every, rounds=rounds)
    assert [r["round"] for r in end.records if "accuracy" in r] == expected
    for record in end.records:
        evaluated = EVALUATED if record["round"] in expected else set()
        assert set(record) == ALWAYS | evaluated
    assert seen == [2.0 * number for number in expected]
    assert [p.rounds for p in saved] == list(range(1, rounds + 1))  # every round is saved


def test_by_default_every_fifth_round_is_evaluated() -> None:
    engine = AddingEngine()
    config = read_config(None, ["train.rounds=11"])
    end = run_rounds(engine, engine.method, START, config, measure, lambda _: None, Reporter())
    assert [r["round"] for r in end.records if "accuracy" in r] == [5, 10, 11]


def test_a_round_that_was_not_evaluated_tells_its_loss_alone() -> None:
    listener = Listener()
    run(reporter=listener, rounds=3, evaluate_every=2)
    assert [note for *_, note in listener.steps] == [
        "loss 2.500",
        "loss 2.500, mean 45.0 %",
        "loss 2.500, mean 55.0 %",
    ]


# validation, which chooses the round and may end the training


def validating(*shares: float) -> Measure:
    """These mean validation accuracies, one after another."""
    left = list(shares)

    def measure_next(learned: Learned, round_number: int) -> Measured:
        share = left.pop(0)
        return Measured({"photo": 1.0}, {"photo": share - 0.125, "sketch": share + 0.125})

    return measure_next


def test_validation_is_recorded_beside_the_test_accuracy() -> None:
    end, _ = run(measured=validating(0.25), rounds=1)
    record = end.records[0]
    assert record["accuracy"] == {"photo": 1.0}
    assert record["mean_accuracy"] == 1.0
    assert record["validation"] == {"photo": 0.125, "sketch": 0.375}
    assert record["mean_validation"] == 0.25
    assert set(record) == ALWAYS | EVALUATED | {"validation", "mean_validation"}


def test_where_there_is_validation_its_mean_is_told() -> None:
    listener = Listener()
    run(measured=validating(0.25), reporter=listener, rounds=1)
    assert listener.steps == [("rounds", 1, 1, "loss 2.500, mean 25.0 %")]


def test_the_best_round_is_the_first_of_the_best() -> None:
    end, saved = run(measured=validating(0.5, 0.75, 0.25, 0.75, 0.5), rounds=5)
    assert [p.best_round for p in saved] == [1, 2, 2, 2, 2]
    assert [p.is_best for p in saved] == [True, True, False, False, False]
    assert end.best_round == 2


def test_only_an_evaluated_round_can_be_the_best() -> None:
    end, saved = run(measured=validating(0.5, 0.25, 0.75), rounds=5, evaluate_every=2)
    assert [p.best_round for p in saved] == [None, 2, 2, 2, 5]
    assert [p.is_best for p in saved] == [False, True, False, False, True]
    assert end.best_round == 5


def test_without_validation_there_is_no_best_round() -> None:
    end, saved = run()
    assert end.best_round is None
    assert not any(p.is_best for p in saved)
    assert not end.has_stopped(1)
    assert not START.is_best
    assert START.best_round is None


def progress(*shares: float | None) -> Progress:
    """After a round for each of these mean validation accuracies; None: not evaluated."""
    records: list[Record] = [
        {"round": i} | ({} if share is None else {"mean_validation": share})
        for i, share in enumerate(shares, start=1)
    ]
    return Progress({}, len(shares), tuple(records))


@pytest.mark.parametrize(
    ("shares", "patience", "expected"),
    [
        ((), 1, False),
        ((0.5,), 1, False),
        ((0.5, 0.25), 1, True),
        ((0.5, 0.5), 1, True),  # as good is not better
        ((0.5, 0.25), 2, False),
        ((0.5, 0.25, 0.25), 2, True),
        ((0.5, 0.25, 0.75), 1, False),
        ((0.5, 0.25, 0.75, 0.5), 2, False),
        ((0.5, None, None, None), 1, False),  # evaluations count, and not rounds
        ((None, 0.5, None, 0.25, None, 0.25), 2, True),
        ((0.5, 0.25, 0.25, 0.25), 0, False),
    ],
)
def test_training_has_stopped_after_so_many_evaluations_without_a_better_one(
    shares: tuple[float | None, ...], patience: int, expected: bool
) -> None:
    assert progress(*shares).has_stopped(patience) is expected


def test_patience_ends_the_training() -> None:
    shares = (0.25, 0.5, 0.375, 0.25, 0.5, 0.75)
    end, saved = run(measured=validating(*shares), rounds=6, patience=3)
    assert end.rounds == len(saved) == 5
    assert end.best_round == 2
    # a run that has stopped is not taken up again
    engine = AddingEngine()
    again, _ = run(end, engine, rounds=6, patience=3)
    assert again is end
    assert engine.rounds == []
    patient, _ = run(end, engine, validating(0.75), rounds=6, patience=4)
    assert (engine.rounds, patient.best_round) == ([5], 6)


def test_without_patience_every_round_is_trained() -> None:
    end, _ = run(measured=validating(0.5, 0.25, 0.25, 0.25), rounds=4)
    assert (end.rounds, end.best_round) == (4, 1)


def test_what_was_measured_as_fields() -> None:
    assert Measured({"a": 0.5, "b": 1.0}, {}).to_record() == {
        "accuracy": {"a": 0.5, "b": 1.0},
        "mean_accuracy": 0.75,
    }
    assert Measured({}, {"a": 0.25}).to_record() == {
        "accuracy": {},
        "mean_accuracy": 0.0,
        "validation": {"a": 0.25},
        "mean_validation": 0.25,
    }
    assert (mean({}), mean({"a": 0.25, "b": 0.75})) == (0.0, 0.5)


# other methods


def test_a_method_that_trains_nothing_has_no_rounds() -> None:
    class Still(Adding):
        trains = False

    engine = AddingEngine(Still())
    end, saved = run(engine=engine)
    assert end is START
    assert (engine.rounds, saved) == ([], [])


def test_noise_is_accounted_for_round_by_round() -> None:
    settings = {"federation__clip": 1.0, "federation__noise": 2.0}
    end, saved = run(**settings)
    assert [r["noise_multiplier"] for r in end.records] == [2.0, 2.0, 2.0]
    expected = [find_epsilon([2.0] * n, 1e-5) for n in (1, 2, 3)]
    assert [r["epsilon"] for r in end.records] == pytest.approx(expected)
    resumed, _ = run(saved[0], **settings)
    assert [r["epsilon"] for r in resumed.records] == pytest.approx(expected)


def test_who_is_refused_is_recorded_once() -> None:
    class Refusing(AddingEngine):
        def run_round(
            self, start: Learned, clients: Sequence[ClientInfo], round_number: int
        ) -> RoundResult:
            found = super().run_round(start, clients, round_number)
            return dataclasses.replace(found, refused={"photo": "late"}, record={"replies": 1})

    (record,) = run(engine=Refusing(), measured=refuse_sketch, rounds=1)[0].records
    assert record["refused"] == {"photo": "late", "sketch": "no score"}
    assert (record["replies"], record["evaluation_bytes"]) == (1, 99)


def refuse_sketch(learned: Learned, round_number: int) -> Measured:
    return Measured({"photo": 0.5}, {}, n_bytes=99, refused={"sketch": "no score"})


@pytest.mark.parametrize("owner", ["client", "key"])
def test_a_slice_goes_to_its_owner_and_back(owner: str) -> None:
    class Slices(Adding):
        owned = {"contexts": owner}

    turned = tuple(Client(c.index, c.name, c.domain, 1 - c.index, IMAGES) for c in CLIENTS)
    learned = {"contexts": torch.zeros(3, 4), "adaptive_network": torch.zeros(2, 5)}
    engine = AddingEngine(Slices(turned))
    end, _ = run(Progress(learned, 0, ()), engine, lambda *_: Measured({}, {}))
    first = {"client": [3.0, 9.0, 0.0], "key": [9.0, 3.0, 0.0]}[owner]
    assert end.learned["contexts"].tolist() == [[value] * 4 for value in first]
    assert torch.equal(end.learned["adaptive_network"], torch.full((2, 5), -6.0))


def test_only_the_clients_of_a_round_are_trained_counted_and_averaged() -> None:
    many = [Client(i, f"photo/{i + 1}", 0, 0, IMAGES) for i in range(5)]
    engine = AddingEngine(Adding(many))
    settings = {"federation__sampled": 2, "federation__clients_per_domain": 5, "rounds": 4}
    end, saved = run(engine=engine, **settings)
    assert all(len(drawn) == 2 for drawn in engine.clients)
    assert len({tuple(drawn) for drawn in engine.clients}) > 1
    before = 0.0
    for drawn, after, record in zip(engine.clients, saved, end.records, strict=True):
        steps = [1 + 2 * i for i in drawn]
        assert float(after.learned["meta_prompt"].max()) == before + sum(steps) / 2
        before += sum(steps) / 2
        assert record["clients"] == 2
        assert record["loss"] == pytest.approx(sum(s * s for s in steps) / sum(steps))
    later = AddingEngine(Adding(many))
    resumed, _ = run(saved[1], later, **settings)
    assert later.clients == engine.clients[2:]
    assert torch.equal(resumed.learned["meta_prompt"], end.learned["meta_prompt"])
