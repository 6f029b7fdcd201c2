"""Resources of this process: cores by affinity and quota, memory by limit.

A container or a scheduler's job sees all cores and all memory of its host. Its affinity and control
groups define the part that it may use.

Source: sched_getaffinity(2); Linux kernel, "Control Group v2" (`cpu.max`, `memory.max`) and
"CFS Bandwidth Control", "Memory Resource Controller" of version 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_CPU_FACTS = ("model name", "flags", "Features", "CPU implementer", "CPU part")
_MAX_DECODE_THREADS = 8
_MAX_DECODE_PROCESSES = 16  # more are not measured
_MIN_IMAGES_OF_PROCESSES = 1000  # for fewer images, the start of processes costs what they gain
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert"}  # of x86


def decode_threads() -> int:
    """Threads that decode images: one per core, at most eight.

    More wait for Python's interpreter lock (`decoding` in `benchmarks/results/gpu_*.json`).
    """
    return min(usable_cores(), _MAX_DECODE_THREADS)


def decode_processes(n_images: int | None) -> int:
    """Processes that decode a job's images; 0 if threads suffice, on up to eight cores.

    Args:
        n_images: number of images; None if it is unknown. Processes start as images arrive.
    """
    cores, is_small = usable_cores(), n_images is not None and n_images < _MIN_IMAGES_OF_PROCESSES
    if cores <= _MAX_DECODE_THREADS or is_small:
        return 0
    return min(cores, _MAX_DECODE_PROCESSES)


def usable_cores() -> int:
    """Number of cores that this process may use, at least 1; a quota of 1.5 counts as 2."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux and some BSDs have it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _cpu_quotas()]
    return max(1, min([cores, *quotas]))


def limit_threads(threads: int) -> int:
    """Number of threads to set in a library whose 0 means every core of the machine.

    Args:
        threads: requested threads; 0 uses every core of this process.

    Returns:
        0 only if this process may use every core.
    """
    return threads or (usable_cores() if usable_cores() != os.cpu_count() else 0)


def processor_facts() -> dict[str, str]:
    """Name and instruction sets of the first core on Linux; empty elsewhere."""
    try:
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in _CPU_FACTS:
            facts.setdefault(name.strip(), value.strip())
    return facts


def may_have_bfloat16() -> bool:
    """False only if the processor is known to lack bfloat16 products."""
    flags = processor_facts().get("flags")
    return flags is None or not _BFLOAT16.isdisjoint(flags.split())


def may_saturate_int8() -> bool:
    """True on x86 without VNNI, which adds pairs of 8-bit products in 16 bits.

    Source: Intel, "Intrinsics Guide": `_mm256_maddubs_epi16` saturates.
    """
    flags = processor_facts().get("flags")  # only x86 has a line of this name
    return flags is not None and "vnni" not in flags and "amx_int8" not in flags


def usable_memory() -> int | None:
    """Bytes of memory that this process may use; None if the system does not report it."""
    if not hasattr(os, "sysconf"):  # Windows
        return None
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for version_2, folder in _groups("memory"):
        words = _read(folder / ("memory.max" if version_2 else "memory.limit_in_bytes"))
        if words and words[0].isdecimal():
            limits.append(int(words[0]))
    return min(limits)


def _cpu_quotas() -> Iterator[float]:
    for version_2, folder in _groups("cpu"):
        if version_2:
            words = _read(folder / "cpu.max")
        else:
            words = _read(folder / "cpu.cfs_quota_us") + _read(folder / "cpu.cfs_period_us")
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            yield int(words[0]) / int(words[1])


def _groups(controller: str) -> Iterator[tuple[bool, Path]]:
    """This process's control groups and their parents: (whether it is version 2, folder)."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = _ROOT / controller if controllers else _ROOT
        group = top / path.lstrip("/")
        # in a container the path may be the host's, while the group is mounted at the top
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield not controllers, folder


def _read(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
