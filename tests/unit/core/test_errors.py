"""Errors: four parts, the exit codes of the module's own tree, and a trip through pickle."""

from __future__ import annotations

import pickle
import re

import pytest

from fedapt.core import errors
from fedapt.core.errors import ReportedError

CODES = {
    "UsageError": 2,
    "ConfigError": 3,
    "DataError": 4,
    "ModelError": 4,
    "ModelNotSupported": 4,
    "CheckpointError": 4,
    "FileError": 4,
    "FederationError": 5,
    "ExportError": 6,
    "ParityError": 7,
    "DependencyError": 9,
}
KINDS = [getattr(errors, name) for name in CODES]


def documented_codes() -> dict[str, int]:
    rows = re.findall(r"^[| ]*[|`]- (\w+)(?: +(\d+))?  ", errors.__doc__ or "", re.MULTILINE)
    codes: dict[str, int] = {}
    for name, code in rows:
        codes[name] = int(code) if code else codes["ModelError"]  # ModelNotSupported hangs below it
    return codes


def test_the_module_documents_every_class_with_its_code() -> None:
    assert documented_codes() == CODES
    assert sorted([*CODES, "ReportedError"]) == sorted(errors.__all__)


def test_the_exit_codes_are_the_documented_ones() -> None:
    assert {kind.__name__: kind.exit_code for kind in KINDS} == CODES


def test_only_an_unsupported_model_is_a_kind_of_another_error() -> None:
    assert issubclass(errors.ModelNotSupported, errors.ModelError)
    others = [kind for kind in KINDS if kind is not errors.ModelNotSupported]
    assert all(kind.__bases__ == (ReportedError,) for kind in others)


def test_the_message_has_four_parts() -> None:
    error = errors.DataError(where="here", found="this", expected="that", next_step="do it")
    assert str(error) == "here: found this; expected that. To do: do it."
    assert (error.where, error.found) == ("here", "this")
    assert (error.expected, error.next_step) == ("that", "do it")


def test_every_error_pickles() -> None:
    for kind in KINDS:
        error = kind(where="here", found="this", expected="that", next_step="do it")
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)


@pytest.mark.parametrize("missing", ["where", "found", "expected", "next_step"])
def test_no_part_can_be_left_out(missing: str) -> None:
    parts = {"where": "here", "found": "this", "expected": "that", "next_step": "do it"}
    del parts[missing]
    with pytest.raises(TypeError, match=missing):
        errors.DataError(**parts)


def test_what_another_party_may_be_told_is_said_by_the_error() -> None:
    parts = {"where": "client 3", "found": "a", "expected": "b", "next_step": "c"}
    assert not errors.FederationError(**parts).shareable
    told = errors.FederationError(**parts, shareable=True)
    assert told.shareable
    assert pickle.loads(pickle.dumps(told)).shareable
