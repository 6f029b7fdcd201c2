"""Distribution of work over a CPU's cores: all cores on one batch, or one batch on each core.

A core with its own batch does not wait for other cores, and a core that decodes delays one batch
instead of all (measured by `benchmarks/runtime.py`). Each core then has a batch in memory, so
batches are small.
"""

from __future__ import annotations

from typing import NamedTuple

from fedapt_runtime.backends.base import DEFAULT_BATCH
from fedapt_runtime.machine import limit_threads, usable_cores

# images that a thread decodes and classifies at a time: several batches, one after the other, keep
# the weights in the caches of a core
TASK_SIZE = 32


class CpuPlan(NamedTuple):
    """The result of `plan_cpu_work`.

    Attributes:
        in_flight: number of batches that run at the same time.
        default_batch: images in each batch.
        threads: threads for each batch; 0 is the library's default, every core of the machine.
    """

    in_flight: int
    default_batch: int
    threads: int


def plan_cpu_work(threads: int, throughput: bool) -> CpuPlan:
    """The plan for a number of threads and a performance hint.

    Args:
        threads: number of threads; 0 uses every core.
        throughput: whether the performance hint is `throughput`; else it is `latency`.
    """
    if throughput:
        return CpuPlan(threads or usable_cores(), 8, 1)
    return CpuPlan(1, DEFAULT_BATCH, limit_threads(threads))
