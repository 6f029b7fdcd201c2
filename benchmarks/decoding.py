"""What scaled JPEG decoding gains and costs: Pillow's draft, and libjpeg-turbo through simplejpeg.

    pip install simplejpeg && python benchmarks/decoding.py

CPU milliseconds of one thread for an image, reading and preprocessing together, the best of three
turns, and the mean difference of pixels from OpenCLIP's. 150 photos of Office-Caltech10, and three
of them enlarged to 12 megapixels. Writes benchmarks/results/decoding.json.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import publish
from numpy.typing import NDArray
from photos import photos_root
from PIL import Image

from fedapt_runtime import Preprocessing

PREPROCESSING = Preprocessing((224, 224), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
Load = Callable[[str], NDArray[np.uint8]]


def load_simplejpeg(path: str) -> NDArray[np.uint8]:
    """At the least of libjpeg-turbo's sizes that need no enlarging."""
    import simplejpeg  # no dependency of the project

    data = Path(path).read_bytes()
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    scale = min(1.0, 224 / min(height, width))
    least = {"min_height": round(height * scale), "min_width": round(width * scale)}
    return PREPROCESSING.image_to_array(Image.fromarray(simplejpeg.decode_jpeg(data, **least)))


LOADERS: dict[str, Load] = {
    "exact": PREPROCESSING.load,
    "fast (draft)": lambda path: PREPROCESSING.load(path, fast=True),
    "simplejpeg": load_simplejpeg,
}


def measure(paths: list[str]) -> dict[str, dict[str, float]]:
    """CPU time and drift of every loader."""
    exact = [PREPROCESSING.load(path).astype(np.int64) for path in paths]
    found: dict[str, dict[str, float]] = {}
    for name, load in LOADERS.items():
        times = []
        for _ in range(3):
            started = time.process_time()
            arrays = [load(path) for path in paths]
            times.append((time.process_time() - started) / len(paths))
        drift = np.mean([np.abs(a - b).mean() for a, b in zip(exact, arrays, strict=True)])
        found[name] = {"cpu_ms": round(1e3 * min(times), 2), "drift": round(float(drift), 3)}
    return found


def main() -> None:
    everything = sorted(str(path) for path in photos_root().glob("*/*/*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(everything))[:150]
    paths = [everything[i] for i in chosen]
    with tempfile.TemporaryDirectory() as folder:
        large = [f"{folder}/{i}.jpg" for i in range(3)]
        for path, name in zip(paths, large, strict=False):
            photo = Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
            photo.save(name, quality=92)
        report = {
            "photos": measure(paths),
            "photos_of_12_megapixels": measure(large),
        }
    publish("decoding", report)


if __name__ == "__main__":
    main()
