"""How long a training waits for the features of 10 000 images that the cache has.

    python benchmarks/feature_cache.py

Each figure is of a process of its own: wall time, and processor time of all its threads, of
`extract_features` on the same list of images and on one with an image more. The images are files of
some 20 kB; their features are noise, which the cache is filled with.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from figures import publish
from numpy.typing import NDArray
from PIL import Image

from fedapt.core.files import hash_file
from fedapt.data import features
from fedapt.data.features import FeatureStore, extract_features
from fedapt_runtime import Preprocessing

IMAGES, WIDTH, SIDE = 10_000, 512, 192


class Noise:
    """An encoder that costs nothing."""

    preprocessing = Preprocessing((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    fingerprint, width = "noise", WIDTH

    def prepare(self) -> None:
        """See `ImageEncoder`."""

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `ImageEncoder`."""
        return np.random.default_rng(0).standard_normal((len(images), WIDTH), dtype=np.float32)


def draw(folder: Path, count: int) -> list[Path]:
    """Photos of noise; behind the end of each stands a number, so that no files are equal."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE // 2, SIDE // 2, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE)).save(stream, "JPEG", quality=90)
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            path.write_bytes(stream.getvalue() + number.to_bytes(4))
    return paths


def fill(folder: Path) -> None:
    paths, rng = draw(folder, IMAGES), np.random.default_rng(0)
    time.sleep(3)  # files that are younger are read again
    store = FeatureStore(folder / "cache" / features._cache_key(Noise()))
    for path in paths:
        store.add(hash_file(path), rng.standard_normal(WIDTH, dtype=np.float32))
    store.flush()
    extract_features(paths, Noise(), folder=folder / "cache")


def extract(folder: Path, count: int) -> dict[str, float]:
    paths = draw(folder, count)
    wall, cpu = time.perf_counter(), time.process_time()
    found = extract_features(paths, Noise(), folder=folder / "cache", workers=2)
    assert len(found.kept) == count
    return {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(extract(Path(sys.argv[1]), int(sys.argv[2]))))
        return
    with tempfile.TemporaryDirectory() as name:
        fill(Path(name))
        figures = {
            what: json.loads(
                subprocess.run(
                    [sys.executable, __file__, name, str(count)],
                    check=True,
                    stdout=subprocess.PIPE,
                ).stdout
            )
            for what, count in (("same_images", IMAGES), ("one_image_more", IMAGES + 1))
        }
    publish("feature_cache", {"images": IMAGES, **figures})


if __name__ == "__main__":
    main()
