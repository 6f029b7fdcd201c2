"""From the start of a training to its first round, with the features of 10 000 images cached.

    python benchmarks/warm_start.py [--images N] [--folder DIR]

Each figure is of a process of its own, timed from its first import: wall time, and processor time
of all its threads. The images are drawn once, and their features computed by a run that is not
timed; both stay in DIR, or go. That run's features are noise instead of an image tower's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from figures import publish
from PIL import Image

DOMAINS, CLASSES, SIDE = 2, 10, 192
_RUN = """
import json, sys, time
begun = time.perf_counter()
import fedapt
if len(sys.argv) > 3:
    import numpy as np
    from fedapt.onnx.image_encoder import OrtEncoder
    rng = np.random.default_rng(0)
    OrtEncoder.encode = lambda self, images: rng.standard_normal(
        (len(images), self.width), dtype=np.float32
    )
import fedapt.data.domains as domains
figures = {}
extract = domains.extract_features
def timed(*args, **named):
    wall, cpu = time.perf_counter(), time.process_time()
    found = extract(*args, **named)
    figures["features_s"] = time.perf_counter() - wall
    figures["features_cpu_s"] = time.process_time() - cpu
    return found
domains.extract_features = timed
class Clock(fedapt.Reporter):
    def progress(self, task, done, total, note=""):
        if task == "rounds":
            figures.setdefault("to_first_round_s", time.perf_counter() - begun)
            figures.setdefault("to_first_round_cpu_s", time.process_time())
fedapt.train(sys.argv[1], out=sys.argv[2], rounds=1, reporter=Clock())
print(json.dumps(figures))
"""


def draw(path: Path, number: int) -> None:
    """A photo of noise, some 20 kB; behind its end stands a number, so that no files are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encode_noise() + number.to_bytes(4))


@cache
def _encode_noise() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE // 2, SIDE // 2, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def measure(root: Path, out: Path, *options: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(root), str(out), *options],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return {name: round(seconds, 2) for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        os.environ["FEDAPT_CACHE"] = str(folder / "cache")
        for number in range(options.images):
            place = f"domain{number % DOMAINS}/class{number // DOMAINS % CLASSES}"
            draw(folder / "images" / place / f"{number}.jpg", number)
        another = folder / "images/domain0/class0/another.jpg"
        another.unlink(missing_ok=True)
        measure(folder / "images", folder / "cold", "noise")
        warm = measure(folder / "images", folder / "warm")
        draw(another, options.images)
        one_more = measure(folder / "images", folder / "more")
    publish("warm_start", {"images": options.images, "warm": warm, "one_more_image": one_more})


if __name__ == "__main__":
    main()
