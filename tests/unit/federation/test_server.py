"""The server's process: what its operator sees where training cannot go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedapt.cli.federation import train as train_module
from fedapt.core.errors import FederationError
from fedapt.core.report import Reporter
from fedapt.federation.flower.follow import Federation, follow
from fedapt.federation.flower.operator import hold_server, request_training, take_request
from fedapt.federation.flower.server import _Server
from fedapt.federation.flower.settings import ServerSettings


class Lines(Reporter):
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def event(self, level: str, text: str, **values: object) -> None:
        self.said.append((level, text))


def test_a_mistake_of_ours_ends_the_training_and_is_told(tmp_path: Path) -> None:
    log = Lines()

    def train(grid: object) -> None:
        raise ZeroDivisionError("of ours")

    server = _Server(tmp_path, ServerSettings("127.0.0.1:1", ("a", "b")), train, log)
    with hold_server(tmp_path):
        request_training(tmp_path)
        assert take_request(tmp_path)
        server._begin_training()
        assert server._thread is not None
        server._thread.join()
        ((level, text),) = log.said
        assert level == "error"
        assert text.endswith("ZeroDivisionError: of ours\n")
        lines = follow(tmp_path / "live.jsonl", 0)
        with pytest.raises(FederationError, match="found a training that stopped early"):
            list(train_module._watch(tmp_path, "127.0.0.1:1", lines, Federation()))
    with pytest.raises(FederationError, match="found no answer: its process has ended"):
        list(train_module._watch(tmp_path, "127.0.0.1:1", lines_of(tmp_path), Federation()))


def lines_of(folder: Path):
    return follow(folder / "live.jsonl", 0)
