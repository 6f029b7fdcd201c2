"""Decoding in threads ahead of the consumer of the pixels, in order and in bounded memory.

Pillow releases the interpreter lock while it decodes and resizes, so threads are sufficient.
Feature extraction for training uses the same code.
"""

from __future__ import annotations

import copy
import io
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from fedapt_runtime.errors import ImageError, InputError
from fedapt_runtime.preprocess import ImageSource, Preprocessing
from fedapt_runtime.remote import is_uri, read_remote, to_local
from fedapt_runtime.sources import Member

T = TypeVar("T")
# a path or URI, an image in an archive, or uint8 RGB [height, width, 3] of any size
Image = str | os.PathLike[str] | Member | NDArray[np.uint8]


@dataclass(frozen=True)
class Decoded:
    """One image.

    Attributes:
        name: see `name_of`.
        pixels: uint8 [height, width, 3]; None if the image cannot be read.
        error: the reason; None if the image can be read.
    """

    name: str
    pixels: NDArray[np.uint8] | None = None
    error: ImageError | None = None


def name_of(image: Image, index: int) -> str:
    """Name of an image in rows and messages; for an array, its index."""
    if isinstance(image, np.ndarray):
        return f"#{index}"
    return image.name if isinstance(image, Member) else os.fspath(image)


def decode_one(
    image: Image, name: str, preprocessing: Preprocessing, fast: bool = False, resize: bool = True
) -> Decoded:
    """Decode and preprocess one image; the result for an unreadable image contains the error.

    Args:
        image: the image.
        name: its name in the result and in errors.
        preprocessing: preprocessing of the model.
        fast, resize: see `Preprocessing.load`.

    Raises:
        InputError: an array that is not a uint8 RGB image.
    """
    if isinstance(image, np.ndarray) and (
        image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size
    ):
        raise InputError(
            where=f"image {name}",
            found=f"an array of {image.dtype} {list(image.shape)}",
            expected="uint8 RGB [height, width, 3]",
            next_step="convert it, for example with np.asarray(image.convert('RGB'))",
        )
    try:
        if isinstance(image, np.ndarray):
            return Decoded(
                name, preprocessing.load(PillowImage.fromarray(image), name, resize=resize)
            )
        source: ImageSource = io.BytesIO(image.read()) if isinstance(image, Member) else image
        if isinstance(image, str) and is_uri(image):
            local = to_local(image)
            source = io.BytesIO(read_remote(image)) if local is None else local
        return Decoded(name, preprocessing.load(source, name, fast=fast, resize=resize))
    except ImageError as error:
        # the traceback's frames would keep the decoded pixels in memory; a copy has none
        return Decoded(name, error=copy.copy(error))


def decode_ahead(
    images: Iterable[Image],
    preprocessing: Preprocessing,
    workers: int,
    ahead: int,
    fast: bool = False,
    resize: bool = True,
) -> Iterator[Decoded]:
    """Yield the decoded images, in order.

    Args:
        images: the images.
        preprocessing: preprocessing of the model.
        workers: number of decoding threads.
        ahead: maximum number of images that are decoded before the consumer takes them.
        fast, resize: see `Preprocessing.load`.

    Raises:
        InputError: see `decode_one`.
    """
    pending: deque[Future[Decoded]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fedapt-decode")
    try:
        for index, image in enumerate(images):
            name = name_of(image, index)
            pending.append(pool.submit(decode_one, image, name, preprocessing, fast, resize))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` consecutive items; the last may be shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch
