"""Decoding in processes, for machines with more cores than decoding threads can use.

Threads share Python's interpreter lock. On 16 cores 16 threads decode 1 500 photos a second and 16
processes 6 400 (`decoding` in `benchmarks/results/gpu_*.json`). The pixels are the same, because
both run `decode_one`; they return through pipes.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from fedapt_runtime.errors import ImageError, RuntimeFailure
from fedapt_runtime.pipeline import Decoded, Image, decode_one, name_of
from fedapt_runtime.preprocess import Preprocessing
from fedapt_runtime.sources import Member
from fedapt_runtime.sources.archives import failing

CHUNK = 16  # images of a task; one image a task would spend its time on messages

Named = tuple[Image, str]


def decode_in_processes(
    images: Iterable[Image],
    preprocessing: Preprocessing,
    processes: int,
    ahead: int,
    fast: bool = False,
    resize: bool = True,
) -> Iterator[Decoded]:
    """Yield the decoded images, in order; like `pipeline.decode_ahead`.

    The processes start as new interpreters, so a script that calls this needs
    `if __name__ == "__main__":` (Python, `multiprocessing`, "Programming guidelines").

    Args:
        images: the images; this process reads the members of archives.
        preprocessing: preprocessing of the model.
        processes: number of decoding processes; fewer start for a few images.
        ahead: minimum number of images to decode before the consumer takes them. Each process has
            at least two chunks.
        fast, resize: see `Preprocessing.load`.

    Raises:
        InputError: see `decode_one`.
        RuntimeFailure: a process ended before its work.
    """
    n_pending = max(2 * processes, ahead // CHUNK)
    pending: deque[Future[list[Decoded]]] = deque()
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start_process
    )
    decode = functools.partial(_decode_chunk, preprocessing=preprocessing, fast=fast, resize=resize)
    named = ((_read_member(image), name_of(image, i)) for i, image in enumerate(images))
    try:
        while chunk := list(itertools.islice(named, CHUNK)):
            with _without_ctrl_c():  # a new process inherits it
                pending.append(pool.submit(decode, chunk))
            if len(pending) >= n_pending:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeFailure(
            where="decoding processes",
            found="a process that ended before its work",
            expected="processes that live as long as the job",
            next_step="check the free memory, or decode in threads (0 decoding processes)",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_member(image: Image) -> Image:
    """An image that another process can decode: open archives stay in this process."""
    if not isinstance(image, Member):
        return image
    try:
        return Member(image.name, functools.partial(bytes, image.read()))
    except ImageError as error:
        return Member(image.name, failing(error))


def _decode_chunk(
    chunk: list[Named], preprocessing: Preprocessing, fast: bool, resize: bool
) -> list[Decoded]:
    return [decode_one(image, name, preprocessing, fast, resize) for image, name in chunk]


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Block SIGINT in this thread: Ctrl-C reaches every process, but the job ends the pool."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for Windows, where no mask blocks it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the job is killed; it would wait for tasks forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
