"""Image features: computed once for each image, and cached on disk.

The towers are frozen and images are not augmented. A feature therefore depends on the image's
bytes, the image tower's weights, the preprocessing and the engine that computes it. The last three
identify a folder of the cache, and the bytes identify a row in it (`feature_store`). The cache
also keeps a complete list of features as a table, which later runs map into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fedapt.core.errors import FileError
from fedapt.core.files import cache_folder, check_cache, replace_file
from fedapt.core.report import Reporter
from fedapt.data.feature_store import DamagedStore, FeatureStore, remove_store
from fedapt_runtime import Preprocessing
from fedapt_runtime.errors import ImageError
from fedapt_runtime.pipeline import batched, decode_ahead

# Every batch has this many images, and the last one is padded. A matrix product may round
# differently for another number of rows, and a feature must not depend on its neighbours.
BATCH_SIZE = 32
_VERSION = 1  # raise when anything else changes what a feature is


class ImageEncoder(Protocol):
    """An image tower that computes features.

    Attributes:
        preprocessing: image file -> uint8 array.
        fingerprint: identifies the encoder whose features these are.
        width: D.
    """

    preprocessing: Preprocessing
    fingerprint: str
    width: int

    def prepare(self) -> None:
        """Load what `encode` requires; called before threads decode images."""
        ...

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, height, width, 3] -> float32 [n, D], not normalised."""
        ...


@dataclass(frozen=True)
class Features:
    """Features of the readable images of a list.

    Attributes:
        values: float32 [n, D]; mapped from the cache, not to be changed.
        kept: index in the list of each row.
        errors: why the others could not be read.
        digest: hash of all the files' bytes, in order, hexadecimal.
    """

    values: NDArray[np.float32]
    kept: NDArray[np.int64]
    errors: tuple[ImageError, ...]
    digest: str


def extract_features(
    paths: Sequence[Path],
    encoder: ImageEncoder,
    *,
    folder: Path | None = None,
    workers: int = 4,
    task: str = "image features",
    reporter: Reporter | None = None,
) -> Features:
    """Features of image files, from the cache if it has them.

    Args:
        paths: image files.
        encoder: computes what the cache lacks.
        folder: the cache; by default `features` in `cache_folder()`.
        workers: threads that read and decode.
        task: name of the progress bar. The bar `image files`, for hashing, comes before it.
        reporter: receives progress and messages.

    Raises:
        FileError: a file cannot be read at all, or the cache cannot be written.
    """
    if is_cache := folder is None:
        folder = cache_folder() / "features"
        if not folder.exists():
            check_cache()
    extraction = _Extraction(
        paths,
        encoder,
        folder / _cache_key(encoder),
        is_cache,
        workers,
        task,
        reporter or Reporter(),
    )
    try:
        return extraction.run()
    except DamagedStore:
        remove_store(extraction.folder)
        return extraction.run()


@dataclass(frozen=True)
class _Extraction:
    """The work on one list of images; see `extract_features`."""

    paths: Sequence[Path]
    encoder: ImageEncoder
    folder: Path
    is_cache: bool
    workers: int
    task: str
    reporter: Reporter

    def run(self) -> Features:
        """All features; the missing ones are computed."""
        with closing(FeatureStore(self.folder)) as store:
            return self._run(store)

    def _run(self, store: FeatureStore) -> Features:
        digests = self._hash_files(store)
        n_images, width = len(digests), self.encoder.width
        name = hashlib.sha256("".join(digests).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        table = self.folder / "tables" / f"{name}.safetensors"
        if (values := _map_table(table, (n_images, width))) is not None:
            self._tell_features(n_images)
            return Features(values, np.arange(n_images), (), name)
        rows: dict[str, list[int]] = {}
        for row, digest in enumerate(digests):
            rows.setdefault(digest, []).append(row)
        values = np.empty((n_images, width), np.float32)
        missing = dict.fromkeys(rows)
        for digest, feature in store.read(list(rows)):
            if len(feature) == width:
                values[rows[digest]] = feature
                missing.pop(digest, None)
        errors = self._compute(store, {d: rows[d] for d in missing}, values)
        kept = [row for row, digest in enumerate(digests) if digest not in errors]
        if errors:
            values = values[kept]
        elif kept:  # a list with errors gets no table, so that each run reports the errors
            _write_table(table, values)
            mapped = _map_table(table, values.shape)
            values = values if mapped is None else mapped
        named = zip(self.paths, digests, strict=True)
        return Features(
            values,
            np.array(kept, dtype=np.int64),
            tuple(_rename(errors[digest], path) for path, digest in named if digest in errors),
            name,
        )

    def _hash_files(self, store: FeatureStore) -> list[str]:
        """A hash of each image's bytes."""
        with ThreadPoolExecutor(self.workers) as pool:
            found = store.hash_files(
                self.paths,
                pool,
                lambda done, total: self.reporter.progress("image files", done, total),
            )
        return [d or f"missing {p}" for p, d in zip(self.paths, found, strict=True)]

    def _compute(
        self, store: FeatureStore, missing: dict[str, list[int]], values: NDArray[np.float32]
    ) -> dict[str, ImageError]:
        """Fill in the rows of the missing images, and return the errors of unreadable ones."""
        if missing:
            if self.is_cache:
                check_cache()
            self.encoder.prepare()
        done = len(self.paths) - len(missing)
        self._tell_features(done)
        errors: dict[str, ImageError] = {}
        files = {digest: self.paths[rows[0]] for digest, rows in missing.items()}
        for digest, result in _encode_missing(files, self.encoder, self.workers):
            if isinstance(result, ImageError):
                errors[digest] = result
            else:
                values[missing[digest]] = result
                store.add(digest, result)
            done += 1
            self._tell_features(done)
        store.flush()
        return errors

    def _tell_features(self, done: int) -> None:
        self.reporter.progress(self.task, done, len(self.paths))


def _write_table(path: Path, values: NDArray[np.float32]) -> None:
    digest = hashlib.sha256(values.data).hexdigest()
    try:
        with replace_file(path) as temporary:
            save_file({"features": values}, temporary, {"sha256": digest})
    except (FileError, SafetensorError):
        pass  # without a table, a run needs more memory, and its result is the same


def _map_table(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The table mapped into memory, float32 of `shape`; None where it is absent or damaged."""
    try:
        with path.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(header_bytes, 1 << 20)))
        known = header["__metadata__"]["sha256"]
        # copy on write: torch requires writable memory, and nothing writes to it
        values = np.memmap(path, np.float32, "c", 8 + header_bytes, shape)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values if hashlib.sha256(values.data).hexdigest() == known else None


def _cache_key(encoder: ImageEncoder) -> str:
    determined_by = {
        "version": _VERSION,
        "encoder": encoder.fingerprint,
        "preprocessing": encoder.preprocessing.to_dict(),
    }
    return hashlib.sha256(json.dumps(determined_by, sort_keys=True).encode()).hexdigest()[:32]


def _rename(error: ImageError, path: Path) -> ImageError:
    # equal files share one row and one error, which names the first file only
    return ImageError(
        where=path, found=error.found, expected=error.expected, next_step=error.next_step
    )


def _encode_missing(
    missing: dict[str, Path], encoder: ImageEncoder, workers: int
) -> Iterator[tuple[str, NDArray[np.float32] | ImageError]]:
    decoded = decode_ahead(missing.values(), encoder.preprocessing, workers, 4 * BATCH_SIZE)
    digests = iter(missing)
    for batch in batched(decoded, BATCH_SIZE):
        pixels = [item.pixels for item in batch if item.pixels is not None]
        rows: Iterator[NDArray[np.float32]] = iter(())
        if pixels:
            padded = pixels + [pixels[-1]] * (BATCH_SIZE - len(pixels))
            rows = iter(encoder.encode(np.stack(padded)))
        for item in batch:
            digest = next(digests)
            if item.error is not None:
                yield digest, item.error
            else:
                # a copy: a view would keep the padded batch in memory
                yield digest, next(rows).copy()
