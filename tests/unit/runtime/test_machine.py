"""Cores by affinity and quota, memory by limit, whatever the host of a container has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedapt_runtime import machine
from fedapt_runtime.machine import decode_processes, decode_threads, usable_cores, usable_memory

INSTALLED = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
NO_LIMIT = 0x7FFFFFFFFFFFF000  # what version 1 says


def lay_out(
    folder: Path, patch: pytest.MonkeyPatch, own: str, groups: dict[str, str], cores: int = 64
) -> None:
    """Control groups as a kernel shows them, on a host of 64 cores."""
    (folder / "own").write_text(own)
    for name, text in groups.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    patch.setattr(machine, "_OWN", folder / "own")
    patch.setattr(machine, "_ROOT", folder / "cgroup")
    patch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)


@pytest.mark.parametrize(
    ("own", "groups", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "200000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "150000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "10000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "max 100000"}, 64),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/of/the/host", {"cpu.max": "400000 100000"}, 4),
        (
            "5:cpuacct,cpu:/a",
            {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "50000"},
            5,
        ),
        ("5:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "50000"}, 64),
        ("5:cpuset:/a", {"cpuset/a/cpu.max": "100000 100000"}, 64),
        ("0::/a", {"a/cpu.max": "no numbers"}, 64),
        ("0::/a", {"a/cpu.max": "100000 0"}, 64),
        ("", {}, 64),
    ],
)
def test_a_quota_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, groups: dict[str, str], cores: int
) -> None:
    lay_out(tmp_path, monkeypatch, own, groups)
    assert usable_cores() == cores


def test_affinity_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, monkeypatch, "0::/a", {"a/cpu.max": "500000 100000"}, cores=3)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 3


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (8, 8), (9, 8), (64, 8)])
def test_more_than_eight_threads_decode_no_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    lay_out(tmp_path, monkeypatch, "", {}, cores=cores)
    assert decode_threads() == threads


@pytest.mark.parametrize(
    ("cores", "images", "processes"),
    [(8, 10**6, 0), (9, 999, 0), (9, 1000, 9), (9, None, 9), (64, 10**6, 16)],
)
def test_processes_decode_long_jobs_on_many_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    images: int | None,
    processes: int,
) -> None:
    lay_out(tmp_path, monkeypatch, "", {}, cores=cores)
    assert decode_processes(images) == processes


@pytest.mark.parametrize(
    ("own", "groups", "expected"),
    [
        ("0::/a/b", {"a/b/memory.max": "1000000"}, 1_000_000),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "2000000"}, 2_000_000),
        ("0::/a", {"a/memory.max": "max"}, INSTALLED),
        ("9:memory:/a", {"memory/a/memory.limit_in_bytes": "3000000"}, 3_000_000),
        ("9:memory:/a", {"memory/a/memory.limit_in_bytes": str(NO_LIMIT)}, INSTALLED),
        ("", {}, INSTALLED),
    ],
)
def test_a_limit_on_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    groups: dict[str, str],
    expected: int,
) -> None:
    lay_out(tmp_path, monkeypatch, own, groups)
    assert usable_memory() == expected


def test_a_process_bound_to_one_core_uses_one() -> None:
    code = (
        "import os\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "os.cpu_count = lambda: 64\n"
        "from fedapt_runtime.backends.cpu_plan import plan_cpu_work\n"
        "print(plan_cpu_work(0, True), plan_cpu_work(0, False), plan_cpu_work(3, True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == (
        "CpuPlan(in_flight=1, default_batch=8, threads=1)"
        " CpuPlan(in_flight=1, default_batch=32, threads=1)"
        " CpuPlan(in_flight=3, default_batch=8, threads=1)\n"
    )
