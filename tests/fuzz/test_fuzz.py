"""Damaged files at every border: whatever they are, the answer is a result or a ReportedError.

A plain run replays the files of past failures, in `corpus`, and tries a few new ones, the same each
time. With FEDAPT_FUZZ_SECONDS (`make fuzz`: 600) it goes on that long, by chance, and writes
what fails into `corpus`.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedapt_runtime.errors import ReportedError
from tests.fuzz.mutations import byte_changes, edit_bytes, edit_json, json_changes
from tests.fuzz.targets import NAMES, Target, make_targets

CORPUS = Path(__file__).parent / "corpus"
SECONDS = float(os.environ.get("FEDAPT_FUZZ_SECONDS", "0"))
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.fixture(scope="session")
def targets(tiny_run: Path) -> dict[str, Target]:
    return make_targets((tiny_run / "checkpoint.safetensors").read_bytes())


def use(target: Target, folder: Path, name: str, data: bytes) -> bool:
    """Whether the file was taken; raises what no border should let through."""
    path = folder / name
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            target.use(path)
            taken = True
        except ReportedError:
            taken = False
    assert [str(item.message) for item in seen] == []
    return taken


@pytest.mark.parametrize("name", NAMES)
def test_whole_files_are_taken(targets: dict[str, Target], tmp_path: Path, name: str) -> None:
    target = targets[name]
    assert target.seeds
    for suffix, data in target.seeds.items():
        assert use(target, tmp_path, f"x{suffix}", data), suffix


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: path.name)
def test_past_failures(targets: dict[str, Target], tmp_path: Path, path: Path) -> None:
    use(targets[path.parent.name], tmp_path, path.name, path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(targets: dict[str, Target], tmp_path: Path, name: str) -> None:
    target = targets[name]
    last: list[tuple[str, bytes]] = []

    @given(st.data())
    def attack(draw: st.DataObject) -> None:
        suffix = draw.draw(st.sampled_from(sorted(target.seeds)))
        data = target.seeds[suffix]
        if target.wraps is not None:
            text, close = target.wraps(data)
            data = close(edit_json(text, draw.draw(json_changes)))
        data = edit_bytes(data, draw.draw(byte_changes))
        last[:] = [(suffix, data)]
        use(target, tmp_path, f"x{suffix}", data)

    if not SECONDS:
        once = settings(
            max_examples=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=(Phase.generate,),
            suppress_health_check=_QUIET,
        )
        once(attack)()
        return
    many = settings(max_examples=200, deadline=None, database=None, suppress_health_check=_QUIET)
    many(attack)
    deadline = time.monotonic() + SECONDS / len(NAMES)
    try:
        while time.monotonic() < deadline:
            attack()
    except Exception:
        ((suffix, data),) = last  # Hypothesis ends with the smallest that fails
        path = CORPUS / name / f"{hashlib.sha256(data).hexdigest()[:12]}.{suffix.lstrip('.')}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        raise
