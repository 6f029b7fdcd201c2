"""Jobs that are killed at random moments and begun again: the same result, nothing left behind.

    python tests/kills.py --kills 200 [--jobs train,classify.csv] [--seed 0]

Each kill is SIGKILL to the whole process group, at a moment drawn from the time that the job takes
undisturbed; every third job is killed twice. Then the same command runs to its end. What it wrote
is compared with what an undisturbed job wrote, byte by byte but for times, and so are the names of
all files in its folder, its cache and its temporary folder. Prints a table, and exits with 1 where
anything differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from support.tiny import write_tiny_clip, write_tiny_images

_TRAIN = ["--lr", "0.1", "--batch-size", "8", "--context-length", "4"]
_TIMES = re.compile(r"seconds|images_per_s|rounds_per_s")
# what a job may do otherwise the second time: reports with times or figures drawn into them
_LOOSE = {".html", ".svg"}


@dataclass(frozen=True)
class Job:
    """A command that writes below a folder, and goes on where it was when it is repeated."""

    name: str
    module: str
    arguments: tuple[str, ...]  # {out} stands for the folder


def list_jobs(inputs: Path) -> list[Job]:
    """Every kind, on a tiny CLIP and tiny images."""
    data, clip = str(inputs / "images"), str(inputs / "clip")
    model, checkpoint = str(inputs / "model.onnx"), str(inputs / "run" / "checkpoint.safetensors")
    train = ("train", "--data", data, "--model", clip, "--out", "{out}/run", "--rounds", "6")
    compare = ("compare", "--data", data, "--model", clip, "--out", "{out}/compared")
    few = ("--methods", "zero-shot,promptfl", "--seeds", "1", "--rounds", "2")
    export = ("export", checkpoint, "--out", "{out}/model.onnx", "--min-agreement", "0")
    return [
        Job("train", "fedapt.cli", (*train, *_TRAIN, "--resume")),
        *(
            Job(
                f"classify.{suffix}",
                "fedapt_runtime",
                ("classify", model, data, "--out", f"{{out}}/rows.{suffix}", "--resume"),
            )
            for suffix in ("jsonl", "csv", "parquet")
        ),
        Job("export", "fedapt.cli", export),
        Job("compare", "fedapt.cli", (*compare, *few)),
        Job("demo", "fedapt.cli", ("demo", "--out", "{out}/demo")),
    ]


def start(job: Job, folder: Path) -> subprocess.Popen[bytes]:
    """Begin, or go on, in a folder with an output, a cache and temporary files of its own."""
    for name in ("out", "cache", "tmp", "home"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    out = folder / "out"
    environment = {
        "FEDAPT_CACHE": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder / "home"),
        "MPLCONFIGDIR": str(folder.parent / "matplotlib"),
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", job.module, *(a.format(out=out) for a in job.arguments)],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish(job: Job, folder: Path) -> float:
    """Run to the end; seconds.

    Raises:
        RuntimeError: it failed.
    """
    begun = time.monotonic()
    process = start(job, folder)
    if process.wait():
        raise RuntimeError(f"{job.name}: exit {process.returncode}, see {folder / 'log'}")
    return time.monotonic() - begun


def kill(job: Job, folder: Path, after_s: float) -> bool:
    """Kill after some time; False where the job had ended before."""
    process = start(job, folder)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def read_result(folder: Path) -> dict[str, Any]:
    """Name -> what must be equal, of every file that a job has left anywhere."""
    found: dict[str, Any] = {}
    for top in ("out", "cache", "tmp", "home"):
        for path in sorted((folder / top).rglob("*")):
            if path.is_dir():
                continue
            name = str(path.relative_to(folder))
            if top != "out" or path.suffix in _LOOSE:
                found[name] = None
            elif path.suffix in (".json", ".jsonl") and "rows" not in name:
                text = path.read_text("utf-8").replace(str(folder), "FOLDER")
                parts = text.splitlines() if path.suffix == ".jsonl" else [text]
                found[name] = [_without_times(json.loads(part)) for part in parts]
            elif path.suffix == ".csv" and "rows" not in name:
                with path.open(newline="", encoding="utf-8") as stream:
                    found[name] = [_without_times(row) for row in csv.DictReader(stream)]
            else:
                found[name] = path.read_bytes().replace(str(folder).encode(), b"FOLDER")
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not _TIMES.search(k)}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def compare_results(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, in words."""
    missing = [f"{name} is missing" for name in expected.keys() - found.keys()]
    extra = [f"{name} was left behind" for name in found.keys() - expected.keys()]
    both = expected.keys() & found.keys()
    return missing + extra + [f"{n} differs" for n in both if expected[n] != found[n]]


def prepare(folder: Path) -> None:
    """A tiny CLIP, images, a run and a model."""
    write_tiny_clip(folder / "clip")
    write_tiny_images(folder / "images", per_class=30)
    jobs = {job.name: job for job in list_jobs(folder)}
    for name in ("train", "export"):
        finish(jobs[name], folder / name)
        for path in (folder / name / "out").iterdir():
            path.rename(folder / path.name)


def main() -> int:
    """Kill jobs in turn; 0 where all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", default="", help="names by commas [all]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, problems = random.Random(options.seed), []
    killed, done, undisturbed = Counter[str](), Counter[str](), {}
    with tempfile.TemporaryDirectory(prefix="kills") as name:
        work = Path(name)
        prepare(work / "inputs")
        wanted = options.jobs.split(",") if options.jobs else []
        jobs = [job for job in list_jobs(work / "inputs") if not wanted or job.name in wanted]
        for job in jobs:
            seconds = finish(job, work / "whole" / job.name)
            undisturbed[job.name] = seconds, read_result(work / "whole" / job.name)
        while killed.total() < options.kills:
            job = jobs[done.total() % len(jobs)]
            seconds, expected = undisturbed[job.name]
            folder = work / "trial"
            for _ in range(1 + (rng.random() < 1 / 3)):
                killed[job.name] += kill(job, folder, rng.uniform(0, seconds))
            finish(job, folder)
            done[job.name] += 1
            differences = compare_results(expected, read_result(folder))
            problems += [f"{job.name} {done[job.name]}: {text}" for text in differences]
            print(f"{killed.total()} kills: {job.name}", *differences, flush=True)
            shutil.rmtree(folder)
    for job in jobs:
        counts = f"{killed[job.name]:4} kills of {done[job.name]:4} jobs"
        print(f"{job.name:16} {counts} of {undisturbed[job.name][0]:.1f} s")
    print("\n".join(problems) or "every result as undisturbed, and nothing left behind")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
