"""The operator's requests are files that nobody else may write."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedapt.core.errors import FederationError
from fedapt.federation.flower import operator as operator_module
from fedapt.federation.flower.operator import (
    finish_training,
    hold_server,
    is_at_work,
    is_running,
    request_training,
    take_request,
    withdraw_request,
)


def test_one_server_for_each_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_module, "_TRY_S", 0.0)
    assert not is_running(tmp_path)
    with hold_server(tmp_path):
        assert is_running(tmp_path)
        match = "found a running server of this folder"
        with pytest.raises(FederationError, match=match), hold_server(tmp_path):
            pytest.fail("there are two")
        assert is_running(tmp_path)
    assert not is_running(tmp_path)


def test_a_request_is_taken_once(tmp_path: Path) -> None:
    assert not take_request(tmp_path)
    request_training(tmp_path)
    assert take_request(tmp_path)
    assert not take_request(tmp_path)
    request_training(tmp_path)
    withdraw_request(tmp_path)
    withdraw_request(tmp_path)
    assert not take_request(tmp_path)


def test_whether_the_server_trains(tmp_path: Path) -> None:
    with hold_server(tmp_path):
        assert not is_at_work(tmp_path)
        request_training(tmp_path)
        assert is_at_work(tmp_path)
        assert take_request(tmp_path)
        assert is_at_work(tmp_path)
        finish_training(tmp_path)
        assert not is_at_work(tmp_path)
        request_training(tmp_path)
        assert take_request(tmp_path)
    assert not is_at_work(tmp_path)  # nobody trains
    with hold_server(tmp_path):
        assert not is_at_work(tmp_path)  # the one before has left it


def test_only_the_owner_may_ask(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o777)
    with hold_server(tmp_path):
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
