"""Trainings of a deployment whose server or nodes are killed, and what has become of them."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedapt.federation.flower.operator import request_training

if TYPE_CHECKING:
    from tests.support.federation import Deployment

SERVER = "server"
# what two runs of one training may say differently
_TIMES = {"seconds", "client_seconds", "evaluation_seconds"}


@dataclass(frozen=True)
class Kill:
    """A process to kill, and when: after this share of an undisturbed training's time."""

    victim: str
    share: float


def draw_kills(rng: random.Random, victims: Sequence[str]) -> list[Kill]:
    """The kills of one training, in their order: one, or two in a third of all trainings."""
    count = 1 + (rng.random() < 1 / 3)
    kills = [Kill(rng.choice(victims), rng.random()) for _ in range(count)]
    return sorted(kills, key=lambda kill: kill.share)


def train(deployment: Deployment, out: str, kills: Sequence[Kill], seconds: float) -> float:
    """A training with these kills, to its end; how long it took.

    A process that was killed is started again at once.

    Args:
        out: name of its run folder.
        seconds: that an undisturbed one takes.
    """
    deployment.configure("server/server.toml", out=out)
    started, left = time.monotonic(), list(kills)
    request_training(deployment.folder / "server")

    def is_over() -> bool:
        done = any(line["event"] == "finished" for line in deployment.events())
        if left and (done or time.monotonic() - started >= left[0].share * seconds):
            _strike(deployment, left.pop(0).victim)
        return done and not left

    deployment.wait_until(is_over, poll=0.02)
    return time.monotonic() - started


def _strike(deployment: Deployment, victim: str) -> None:
    deployment.kill(victim)
    if victim == SERVER:
        deployment.start_server()
        request_training(deployment.folder / "server")
    else:
        deployment.start_node(victim)


def read_result(run: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The checkpoint, and the records without times."""
    lines = (run / "records.jsonl").read_text("utf-8").splitlines()
    records = [{k: v for k, v in json.loads(x).items() if k not in _TIMES} for x in lines]
    return (run / "checkpoint.safetensors").read_bytes(), records


def find_lost(records: Sequence[dict[str, Any]], kills: Sequence[Kill]) -> list[str]:
    """The documented losses: rounds that have gone on without a node that was killed."""
    victims = {kill.victim for kill in kills}
    return [
        f"round {record['round']} without {name}: {reason}"
        for record in records
        for name, reason in record.get("refused", {}).items()
        if name in victims
    ]


def judge(whole: Path, trial: Path, kills: Sequence[Kill]) -> str:
    """`same`, `lost: ...` as documented, or `WRONG: ...`.

    Args:
        whole, trial: run folders of an undisturbed training and of one with these kills.
    """
    expected, found = read_result(whole), read_result(trial)
    if left := {p.name for p in trial.iterdir()} - {p.name for p in whole.iterdir()}:
        return f"WRONG: left behind: {', '.join(sorted(left))}"
    if lost := find_lost(found[1], kills):
        return "lost: " + ", ".join(lost)
    if expected[0] != found[0]:
        return "WRONG: another checkpoint"
    return "same" if expected[1] == found[1] else "WRONG: other records"
