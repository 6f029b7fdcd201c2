"""`lite` on small machines: float32 and int8, one thread and two.

    python benchmarks/edge.py

Each figure is of a process of its own with `fedapt-runtime`: seconds from its start until one photo
is classified, the peak of its memory, and images/s of the graph alone in batches of one. Medians of
five turns, which alternate. The processor is named as Linux names it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from deployed import choose_photos, deployed_models
from figures import publish

TURNS, RUNS = 5, 100
# classifies, then runs the graph on the same pixels; the kernel's figures come last
CHILD = """
import json, sys, time
model, threads, runs, photo = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
from fedapt_runtime import Classifier
classifier = Classifier.load(model, backend="onnxruntime", device="cpu", threads=threads)
classifier([photo])
print("ready", flush=True)
pixels = classifier.preprocessing().load(photo)[None]
started = time.perf_counter()
for _ in range(runs):
    classifier.backend.run(pixels)
rate = runs / (time.perf_counter() - started)
peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM:")).split()[1]
print(json.dumps({"images_per_second": rate, "peak_megabytes": int(peak) / 1024}))
"""


def measure(model: Path, threads: int, photo: Path) -> dict[str, float]:
    """One process."""
    command = [sys.executable, "-c", CHILD, str(model), str(threads), str(RUNS), str(photo)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ready = time.perf_counter() - started
        figures: dict[str, float] = json.loads(process.stdout.readline())
    return {"start_seconds": ready, **figures}


def main() -> None:
    (photo,) = choose_photos(1)
    turns: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    with deployed_models(__doc__) as models:
        sizes = {precision: path.stat().st_size for precision, path in models.items()}
        for _ in range(TURNS):
            for precision, path in models.items():
                for threads in (1, 2):
                    turns[precision, threads].append(measure(path, threads, photo))
    rows = [
        {
            "model": f"lite {precision}",
            "bytes": sizes[precision],
            "threads": threads,
            **{key: round(float(np.median([t[key] for t in found])), 2) for key in found[0]},
        }
        for (precision, threads), found in turns.items()
    ]
    publish("edge", {"models": rows})


if __name__ == "__main__":
    main()
