"""Image features: computed once per image, kept on disk, keyed by what determines them.

The towers are frozen and images are not augmented, so a feature depends on the image's bytes, the
image tower's weights, the preprocessing and the engine that computes it. The last three name a
folder of the cache, the first a row in it. Rows are kept in shards that are written whole, so an
interrupted extraction loses little and two runs can share the cache. A list of images that was
complete once is kept as a table of its own, which later runs map into memory instead of reading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save, save_file

from fedapt.core.errors import FileError
from fedapt.core.files import cache_folder, check_cache, hash_file, replace_file, write_bytes
from fedapt_runtime import Preprocessing
from fedapt_runtime.errors import ImageError
from fedapt_runtime.pipeline import decode_ahead, split_batches

# Every run of the tower has this many images, the last one filled up: a matrix product may round
# differently for another number of rows, and a feature must not depend on its neighbours.
BATCH_SIZE = 32
_SHARD_IMAGES = 2048
_VERSION = 1  # raise when anything else changes what a feature is

Progress = Callable[[int, int], None]


class ImageEncoder(Protocol):
    """What computes features.

    Attributes:
        preprocessing: image file -> uint8 array.
        fingerprint: what tells this encoder's features from any other's.
        width: D.
    """

    preprocessing: Preprocessing
    fingerprint: str
    width: int

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, height, width, 3] -> float32 [n, D], not normalised."""
        ...


@dataclass(frozen=True)
class Features:
    """Features of the readable ones among a list of images.

    Attributes:
        values: float32 [n, D]; mapped from the cache, not to be changed.
        kept: index in the list of each row.
        errors: why the others could not be read.
        digest: of all the files' bytes, in order, hexadecimal.
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
    progress: Progress = lambda done, total: None,
) -> Features:
    """Features of image files, from the cache where it has them.

    Args:
        paths: image files.
        encoder: computes what the cache lacks.
        folder: the cache; by default `features` in `cache_folder()`.
        workers: threads that read and decode.
        progress: called with images done and in total.

    Raises:
        FileError: a file cannot be read at all, or the cache cannot be written.
    """
    is_cache = folder is None
    folder = (folder or cache_folder() / "features") / _cache_key(encoder)
    with ThreadPoolExecutor(workers) as pool:
        digests = list(pool.map(_digest, paths))
    name = hashlib.sha256("".join(digests).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    table = folder / "tables" / f"{name}.safetensors"
    if (values := _map_table(table, (len(paths), encoder.width))) is not None:
        progress(len(paths), len(paths))
        return Features(values, np.arange(len(paths)), (), name)
    store = FeatureStore(folder)
    missing: dict[str, Path] = {}
    for path, digest in zip(paths, digests, strict=True):
        if digest not in store.rows:
            missing.setdefault(digest, path)
    if missing and is_cache:
        check_cache()
    errors: dict[str, ImageError] = {}
    done = len(paths) - len(missing)
    progress(done, len(paths))
    for digest, result in _encode_missing(missing, encoder, workers):
        if isinstance(result, ImageError):
            errors[digest] = result
        else:
            store.add(digest, result)
        done += 1
        progress(done, len(paths))
    store.flush()
    kept = [i for i, digest in enumerate(digests) if digest not in errors]
    values = np.empty((len(kept), encoder.width), dtype=np.float32)
    for row, i in enumerate(kept):
        values[row] = store.rows[digests[i]]
    if kept and not errors:  # a list with errors is read again, so that each run names them
        _write_table(table, values)
        mapped = _map_table(table, values.shape)
        values = values if mapped is None else mapped
    return Features(
        values,
        np.array(kept, dtype=np.int64),
        tuple(_rename(errors[d], p) for p, d in zip(paths, digests, strict=True) if d in errors),
        name,
    )


def _write_table(path: Path, values: NDArray[np.float32]) -> None:
    digest = hashlib.sha256(values.data).hexdigest()
    try:
        with replace_file(path) as temporary:
            save_file({"features": values}, temporary, {"sha256": digest})
    except (FileError, SafetensorError):
        pass  # a table that cannot be written costs memory, not correctness


def _map_table(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The table mapped into memory, float32 of `shape`; None where it is absent or damaged."""
    try:
        with path.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(header_bytes, 1 << 20)))
        known = header["__metadata__"]["sha256"]
        # copy on write: torch wants memory that could be written to, and nothing does
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


def _digest(path: Path) -> str:
    return hash_file(path) if path.is_file() else f"missing {path}"


def _rename(error: ImageError, path: Path) -> ImageError:
    # equal bytes share one row and so one error, which names the first file only
    return ImageError(
        where=path, found=error.found, expected=error.expected, next_step=error.next_step
    )


def _encode_missing(
    missing: dict[str, Path], encoder: ImageEncoder, workers: int
) -> Iterator[tuple[str, NDArray[np.float32] | ImageError]]:
    decoded = decode_ahead(missing.values(), encoder.preprocessing, workers, 4 * BATCH_SIZE)
    digests = iter(missing)
    for batch in split_batches(decoded, BATCH_SIZE):
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
                # a copy: a row alone, not a view that keeps the padded batch alive
                yield digest, next(rows).copy()


class FeatureStore:
    """Features on disk under one key, by the hash of the image's bytes.

    Attributes:
        rows: digest of an image -> its feature, float32 [D].
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._new: dict[str, NDArray[np.float32]] = {}
        self.rows: dict[str, NDArray[np.float32]] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            try:
                data = shard.read_bytes()
                if _content_name(data) != shard.stem:
                    continue
                tensors = load(data)
                digests, features = tensors["digests"], tensors["features"]
                self.rows.update(
                    (bytes(digest).hex(), feature)
                    for digest, feature in zip(digests, features, strict=True)
                )
            except (SafetensorError, OSError, KeyError, ValueError):
                continue  # a damaged shard is a cache miss; what it held is computed again

    def add(self, digest: str, feature: NDArray[np.float32]) -> None:
        """Keep one feature; it reaches the disk with the next full shard or `flush`."""
        self.rows[digest] = self._new[digest] = feature
        if len(self._new) >= _SHARD_IMAGES:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk.

        Raises:
            FileError: the cache cannot be written.
        """
        if not self._new:
            return
        digests = np.array([list(bytes.fromhex(d)) for d in self._new], dtype=np.uint8)
        data = save({"digests": digests, "features": np.stack(list(self._new.values()))})
        write_bytes(self._folder / f"{_content_name(data)}.safetensors", data)
        self._new.clear()


def _content_name(data: bytes) -> str:
    """Shards are named by their content: damage shows, and equal shards are one file."""
    return hashlib.sha256(data).hexdigest()[:32]
