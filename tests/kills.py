"""Jobs that are killed at random moments and begun again: the same result, nothing left behind.

    python tests/kills.py --kills 200 [--jobs train,classify.csv] [--seed 0] [--json FILE]

Each kill is SIGKILL to the whole process group, at a moment drawn from the time that the job takes
undisturbed; every third job is killed twice. Then the same command runs to its end. What it wrote
is compared with what an undisturbed job wrote, byte by byte but for times, and so are the names of
all files in its folder, its cache and its temporary folder. Prints a table, and exits with 1 where
anything differs.

Jobs are forked from this process, which has imported everything: kills hit work, not imports.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and numpy: threads do not survive a fork
os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import pyarrow.parquet  # noqa: F401
from support.small_demo import run_small_demo
from support.tiny import write_tiny_clip, write_tiny_images

import fedapt.cli.app
import fedapt.comparison.run
import fedapt.run.train
import fedapt_runtime.cli
from fedapt.model.open_clip_import import import_open_clip

_TRAIN = ["--lr", "0.1", "--batch-size", "8", "--context-length", "4"]
_TIMES = re.compile(r"seconds|images_per_s|rounds_per_s")
# what a job may do otherwise the second time: reports with times or figures drawn into them
_LOOSE = {".html", ".svg"}


@dataclass(frozen=True)
class Job:
    """A command that writes below a folder, and goes on where it was when it is repeated."""

    name: str
    main: Callable[[list[str]], int]
    arguments: tuple[str, ...]  # {out} stands for the folder
    towers: Path | None = None  # exported image towers, to begin with; most of a short job's time

    def run(self, out: Path) -> int:
        """Run it in this process; its exit code."""
        return self.main([argument.format(out=out) for argument in self.arguments])


def list_jobs(inputs: Path) -> list[Job]:
    """Every kind, on a tiny CLIP and tiny images."""
    data, clip = str(inputs / "images"), str(inputs / "clip")
    model, checkpoint = str(inputs / "model.onnx"), str(inputs / "run" / "checkpoint.safetensors")
    train = ("train", "--data", data, "--model", clip, "--out", "{out}/run", "--rounds", "6")
    compare = ("compare", "--data", data, "--model", clip, "--out", "{out}/compared")
    few = ("--methods", "zero-shot,promptfl", "--seeds", "1", "--rounds", "2")
    export = ("export", checkpoint, "--out", "{out}/model.onnx", "--min-agreement", "0")
    fedapt_main, classify_main = fedapt.cli.app.main, fedapt_runtime.cli.main
    towers = inputs / "cache" / "towers"
    return [
        Job("train", fedapt_main, (*train, *_TRAIN, "--resume"), towers),
        *(
            Job(
                f"classify.{suffix}",
                classify_main,
                ("classify", model, data, "--out", f"{{out}}/rows.{suffix}", "--resume"),
            )
            for suffix in ("jsonl", "csv", "parquet")
        ),
        Job("export", fedapt_main, export, towers),
        Job("compare", fedapt_main, (*compare, *few), towers),
        Job("demo", run_small_demo, (clip, "{out}/demo"), towers),
        Job("export.cold", fedapt_main, export),
    ]


def start(job: Job, folder: Path) -> BaseProcess:
    """Begin, or go on, in a folder with an output, a cache and temporary files of its own."""
    process = multiprocessing.get_context("fork").Process(target=_work, args=(job, folder))
    process.start()
    return process


def _work(job: Job, folder: Path) -> None:
    os.setsid()
    for name in ("out", "cache", "tmp", "home"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if job.towers is not None:
        shutil.copytree(job.towers, folder / "cache" / "towers", dirs_exist_ok=True)
    os.environ["FEDAPT_CACHE"] = str(folder / "cache")
    os.environ["HOME"] = str(folder / "home")
    os.environ["MPLCONFIGDIR"] = str(folder.parent / "matplotlib")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.exit(job.run(folder / "out"))


def finish(job: Job, folder: Path) -> float:
    """Run to the end; seconds.

    Raises:
        RuntimeError: it failed.
    """
    begun = time.monotonic()
    process = start(job, folder)
    process.join()
    if process.exitcode:
        log = (folder / "log").read_text("utf-8", "replace")
        raise RuntimeError(f"{job.name}: exit {process.exitcode}\n{log[-4000:]}")
    return time.monotonic() - begun


def kill(job: Job, folder: Path, after_s: float) -> bool:
    """Kill after some time; False where the job had ended before."""
    process = start(job, folder)
    process.join(after_s)
    if process.exitcode is not None:
        return False
    with suppress(ProcessLookupError):  # it has no group of its own yet
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


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
    """A tiny CLIP, images, a run and a model; and every module that jobs import, for the forks."""
    write_tiny_clip(folder / "clip")
    write_tiny_images(folder / "images", per_class=12)
    jobs = {job.name: job for job in list_jobs(folder)}
    os.environ["FEDAPT_CACHE"] = str(folder / "cache")
    for name in ("train", "export", "classify.parquet"):
        if code := jobs[name].run(folder):
            raise RuntimeError(f"{name}: exit {code}")


def main() -> int:
    """Kill jobs in turn; 0 where all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", default="", help="names by commas [all]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the outcome is written [nowhere]")
    options = parser.parse_args()
    rng, problems = random.Random(options.seed), list[str]()
    import_open_clip()
    killed, done, undisturbed = Counter[str](), Counter[str](), {}
    with tempfile.TemporaryDirectory(prefix="kills") as name:
        work = Path(name)
        prepare(work / "inputs")
        wanted = options.jobs.split(",") if options.jobs else []
        jobs = [job for job in list_jobs(work / "inputs") if not wanted or job.name in wanted]
        for job in jobs:
            seconds = finish(job, work / "whole" / job.name)
            undisturbed[job.name] = seconds, read_result(work / "whole" / job.name)
        spent = dict.fromkeys((job.name for job in jobs), 0.0)
        while killed.total() < options.kills:
            # half of the turns go round, half to the kind that has taken least time so far
            turn = done.total()
            job = (
                min(jobs, key=lambda j: spent[j.name]) if turn % 2 else jobs[turn // 2 % len(jobs)]
            )
            begun = time.monotonic()
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
            spent[job.name] += time.monotonic() - begun
    for job in jobs:
        counts = f"{killed[job.name]:4} kills of {done[job.name]:4} jobs"
        print(f"{job.name:16} {counts} of {undisturbed[job.name][0]:.1f} s")
    if options.json:
        rows = {
            job.name: {"kills": killed[job.name], "jobs": done[job.name]}
            | {"seconds_undisturbed": round(undisturbed[job.name][0], 2)}
            for job in jobs
        }
        outcome = {"seed": options.seed, "kills": killed.total(), "jobs": rows}
        options.json.write_text(json.dumps(outcome | {"problems": problems}, indent=1) + "\n")
    print("\n".join(problems) or "every result as undisturbed, and nothing left behind")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
