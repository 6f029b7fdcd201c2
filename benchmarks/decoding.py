"""What an image costs before the model: reading, decoding, resizing and cropping, by way of each.

    pip install simplejpeg && python benchmarks/decoding.py

CPU milliseconds of one thread for an image, the best of three turns, and the mean difference of
pixels from OpenCLIP's. `decode` is Pillow's decoder alone; `vector` resizes with vector_resize.ll
and the others with Pillow; `fast` decodes at a fraction of the size (Pillow's draft, and
libjpeg-turbo through simplejpeg). 150 photos of Office-Caltech10 as they are, as PNG and as WebP,
and three of them enlarged to 12 megapixels. Writes benchmarks/results/decoding.json.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from figures import publish
from numpy.typing import NDArray
from photos import photos_root
from PIL import Image

from fedapt_runtime import Preprocessing, preprocess
from fedapt_runtime.vector_resize import Resize, load_vector_code

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


def load_fast(path: str) -> NDArray[np.uint8]:
    return PREPROCESSING.load(path, fast=True)


def decode(path: str) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        image.load()
    return np.zeros(0, np.uint8)


@contextmanager
def resize_by(vector: bool) -> Iterator[None]:
    """Resize with the vector code from the first image on, or with Pillow to the last."""
    before = preprocess.RESIZE
    preprocess.RESIZE = Resize.always(load_vector_code() if vector else None)
    try:
        yield
    finally:
        preprocess.RESIZE = before


LOADERS: dict[str, tuple[Load, bool]] = {
    "decode": (decode, False),
    "exact": (PREPROCESSING.load, False),
    "exact, vector": (PREPROCESSING.load, True),
    "fast": (load_fast, False),
    "fast, vector": (load_fast, True),
}
JPEG_LOADERS = LOADERS | {
    "simplejpeg": (load_simplejpeg, False),
    "simplejpeg, vector": (load_simplejpeg, True),
}


def measure(
    paths: list[str], loaders: dict[str, tuple[Load, bool]] = LOADERS
) -> dict[str, dict[str, float]]:
    """CPU time and drift of every loader."""
    with resize_by(vector=False):
        exact = [PREPROCESSING.load(path).astype(np.int64) for path in paths]
    found: dict[str, dict[str, float]] = {}
    for name, (load, vector) in loaders.items():
        times = []
        with resize_by(vector):
            for _ in range(3):
                started = time.process_time()
                arrays = [load(path) for path in paths]
                times.append((time.process_time() - started) / len(paths))
        found[name] = {"cpu_ms": round(1e3 * min(times), 2)}
        if load is not decode:
            drift = np.mean([np.abs(a - b).mean() for a, b in zip(exact, arrays, strict=True)])
            found[name]["drift"] = round(float(drift), 3)
    return found


def measure_resize(paths: list[str]) -> dict[str, float]:
    """CPU milliseconds of `image_to_array` for a decoded image."""
    images = [Image.open(path) for path in paths]
    for image in images:
        image.load()
    found = {}
    for name, vector in (("pillow", False), ("vector", True)):
        times = []
        with resize_by(vector):
            for _ in range(3):
                started = time.process_time()
                for image in images:
                    PREPROCESSING.image_to_array(image)
                times.append((time.process_time() - started) / len(paths))
        found[name] = round(1e3 * min(times), 2)
    return found | {"ratio": round(found["pillow"] / found["vector"], 2)}


def save_as(paths: list[str], folder: str, suffix: str, size: tuple[int, int] | None) -> list[str]:
    """Copies in another format or size."""
    made = [f"{folder}/{i}-{size is None}.{suffix}" for i in range(len(paths))]
    for path, name in zip(paths, made, strict=True):
        photo = Image.open(path).convert("RGB")
        if size is not None:
            photo = photo.resize(size, Image.Resampling.BICUBIC)
        photo.save(name, quality=92)
    return made


def main() -> None:
    everything = sorted(str(path) for path in photos_root().glob("*/*/*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(everything))[:150]
    paths = [everything[i] for i in chosen]
    with tempfile.TemporaryDirectory() as folder:
        large = save_as(paths[:3], folder, "jpg", (4000, 3000))
        report = {
            "photos": measure(paths, JPEG_LOADERS),
            "photos_as_png": measure(save_as(paths, folder, "png", None)),
            "photos_as_webp": measure(save_as(paths, folder, "webp", None)),
            "photos_of_12_megapixels": measure(large, JPEG_LOADERS),
            "resize_alone": {
                "photos": measure_resize(paths),
                "photos_of_12_megapixels": measure_resize(large),
            },
        }
    publish("decoding", report)


if __name__ == "__main__":
    main()
