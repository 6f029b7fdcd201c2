"""What a node remembers across restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedapt.core.errors import FederationError
from fedapt.federation.flower.memory import Memory


def test_a_sum_of_the_same_start_is_the_same_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "state" / "memory.json"
    memory = Memory(path)
    memory.keep_sum(b"start", b"clients 0, 1, 3")
    memory.keep_sum(b"later start", b"clients 0, 1, 2, 3")
    memory.keep_sum(b"start", b"clients 0, 1, 3")
    for one in (memory, Memory(path)):  # the process, and the next one
        with pytest.raises(FederationError, match="a second sum of the same start") as caught:
            one.keep_sum(b"start", b"clients 0, 1, 2, 3")
        assert caught.value.where == "the node's memory"  # which may go to the server
        one.keep_sum(b"start", b"clients 0, 1, 3")


def test_the_secret_stays(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    memory = Memory(path)
    assert Memory(path).secret == memory.secret
    assert len(memory.secret) == 32
    assert path.stat().st_mode & 0o077 == 0
    assert Memory(tmp_path / "other.json").secret != memory.secret
    assert Memory().secret != Memory().secret


def test_a_damaged_memory_is_not_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    Memory(path)
    for damage in ("", "[]", "{}", '{"secret": "00", "sums": {}}', '{"secret": 1, "sums": {}}'):
        path.write_text(damage)
        with pytest.raises(FederationError, match="expected the node's saved state"):
            Memory(path)
        assert path.read_text() == damage
