"""Jobs of up to a million small images: archives, memory, the journal, a resumed job, and Ray.

    python benchmarks/scale.py [--images N] [--only ray]

JPEGs of 64 x 64 pixels of 1 000 different contents and a tiny CLIP, so that reading, decoding, the
journal and the rows are most of the work. A tenth of the images also lie in a folder and in one
zip. The whole number lies in tar shards of 10 000; that job is killed halfway and resumed, and each
row is compared with the label of its content. Then photos of Office-Caltech10 with `lite`, on Ray
with two workers beside the local engine. Every job is a process of its own. Half an hour on two
cores.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from deployed import choose_photos
from figures import RESULTS, publish
from idle_nodes import read_megabytes
from photos import CLASSES, ROOT
from PIL import Image
from zero_shot import write_zero_shot

from fedapt.model.backbone import load_backbone
from fedapt_runtime import Classifier

sys.path.insert(0, str(ROOT / "tests"))

from support.tiny import write_tiny_clip

CONTENTS, SHARD, SIDE, TURNS, RAY_TURNS = 1000, 10_000, 64, 2, 4
PHOTOS = 2500
RAY = "photos_a_second_with_two_workers"


def draw_contents() -> list[bytes]:
    """JPEGs of smooth noise."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(CONTENTS):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((SIDE, SIDE)).save(stream, "JPEG", quality=85)
        found.append(stream.getvalue())
    return found


def name_members(first: int, count: int) -> Iterator[tuple[str, int]]:
    """Names of members, with the number of each one's content."""
    for number in range(first, first + count):
        content = number * 7919 % CONTENTS
        yield f"{number:07d}_{content:03d}.jpg", content


def write_tar(path: Path, contents: Sequence[bytes], first: int, count: int) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in name_members(first, count):
            member = tarfile.TarInfo(name)
            member.size = len(contents[content])
            archive.addfile(member, io.BytesIO(contents[content]))


def start(model: Path, sources: Sequence[Path], *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fedapt_runtime", "classify", str(model)]
    return subprocess.Popen(
        [*command, *map(str, sources), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"FEDAPT_BACKEND": "onnxruntime"},
    )


def time_job(model: Path, sources: Sequence[Path], *options: str) -> float:
    """Seconds of a job from its start to its end."""
    began = time.perf_counter()
    if start(model, sources, *options).wait():
        sys.exit(f"a job on {sources[0].name} failed: run it alone to read why")
    return time.perf_counter() - began


def count_rows(part: Path) -> int:
    """Rows of an unfinished job; they are written once a second."""
    if not part.exists():
        return 0
    with part.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def watch(process: subprocess.Popen[bytes], part: Path, stop_at: int = 0) -> list[float]:
    """Megabytes of a job, each second; the job is killed as soon as it has so many rows."""
    megabytes: list[float] = []
    while process.poll() is None:
        megabytes.append(read_megabytes(process.pid))
        if stop_at and count_rows(part) >= stop_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(1)
    return megabytes


def compare_archives(folder: Path, model: Path, contents: list[bytes], count: int) -> object:
    """Images a second of the same images in a folder, a zip and tar shards; medians of turns."""
    loose, zipped = folder / "loose", folder / "all.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, content in name_members(0, count):
            place = loose / name[:4]
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(contents[content])
            archive.writestr(name, contents[content])
    shards = sorted((folder / "shards").iterdir())[: count // SHARD]
    sources = {"folder": [loose], "zip": [zipped], "tar": shards}
    out = ("--out", str(folder / "turn.jsonl"))
    seconds: dict[str, list[float]] = {name: [] for name in (*sources, "tar, no journal")}
    for _ in range(TURNS):
        for name, paths in sources.items():
            seconds[name].append(time_job(model, paths, *out))
        # rows to stdout have no journal
        seconds["tar, no journal"].append(time_job(model, shards))
    speeds = {name: round(count / statistics.median(found)) for name, found in seconds.items()}
    return {"images": count, **speeds}


def run_shards(folder: Path, model: Path, contents: list[bytes], count: int) -> dict[str, object]:
    """The whole number, killed halfway and resumed: memory, times, and each row."""
    shards, out = sorted((folder / "shards").iterdir()), folder / "rows.jsonl"
    part = folder / "rows.jsonl.part"
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"content{number}.jpg")
        paths[-1].write_bytes(content)
    expected = [p.label for p in Classifier.load(model, backend="onnxruntime").stream(paths)]
    began = time.perf_counter()
    before = watch(start(model, shards, "--out", str(out)), part, count // 2)
    killed, rows_then = time.perf_counter(), count_rows(part)
    resumed = start(model, shards, "--out", str(out), "--resume")
    while count_rows(part) <= rows_then and resumed.poll() is None:
        time.sleep(0.2)
    first_row = time.perf_counter()
    after = watch(resumed, part)
    ended = time.perf_counter()
    again = time_job(model, shards, "--out", str(out), "--resume")
    seen, wrong = set(), 0
    with out.open("rb") as rows:
        for line in rows:
            row = json.loads(line)
            name = row["path"].rpartition("::")[2]
            seen.add(name)
            wrong += row["label"] != expected[int(name[8:11])]
    return {
        "images": count,
        "distinct_rows": len(seen),
        "wrong_rows": wrong,
        "rows_when_killed": rows_then,
        "seconds_until_killed": round(killed - began, 1),
        "seconds_from_resume_to_the_first_new_row": round(first_row - killed, 1),
        "seconds_of_the_rest": round(ended - first_row, 1),
        "seconds_to_resume_the_finished_job": round(again, 1),
        "megabytes": {
            "after_a_tenth": round(before[len(before) // 5], 1),
            "when_killed": round(before[-1], 1),
            "at_the_end": round(max(after, default=0.0), 1),
        },
    }


def compare_ray(folder: Path) -> dict[str, float]:
    """Photos a second with `lite`, in turns; Ray's time without the start of its cluster."""
    model = write_zero_shot(load_backbone("lite"), CLASSES, folder / "lite.onnx")
    photos, out = choose_photos(PHOTOS), str(folder / "photos.jsonl")
    ways = {"local": (), "ray": ("--ray", "--workers", "2")}
    few: dict[str, list[float]] = {name: [] for name in ways}
    whole: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(RAY_TURNS):
        for name, options in ways.items():
            few[name].append(time_job(model, photos[:10], "--out", out, *options))
            whole[name].append(time_job(model, photos, "--out", out, *options))
    speed = {
        name: (PHOTOS - 10) / (statistics.median(whole[name]) - statistics.median(few[name]))
        for name in ways
    }
    return {
        **{name: round(found, 1) for name, found in speed.items()},
        "ray_of_local": round(speed["ray"] / speed["local"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=1_000_000, help="[1 000 000]")
    parser.add_argument("--only", choices=["ray"], help="keep the other figures of the record")
    arguments = parser.parse_args()
    count = arguments.images // SHARD * SHARD
    figures: dict[str, object]
    if arguments.only:
        figures = json.loads((RESULTS / "scale.json").read_text("utf-8"))
        with tempfile.TemporaryDirectory() as name:
            publish("scale", figures | {RAY: compare_ray(Path(name))})
        return
    with tempfile.TemporaryDirectory() as name:
        folder, contents = Path(name), draw_contents()
        backbone = load_backbone(str(write_tiny_clip(folder / "clip")))
        model = write_zero_shot(backbone, ("bike", "mug", "mouse"), folder / "tiny.onnx")
        (folder / "shards").mkdir()
        for first in range(0, count, SHARD):
            write_tar(folder / "shards" / f"{first // SHARD:04d}.tar", contents, first, SHARD)
        some = max(SHARD, count // 10 // SHARD * SHARD)
        figures = {}
        parts: dict[str, Callable[[], object]] = {
            "tar_shards": lambda: run_shards(folder, model, contents, count),
            "images_a_second": lambda: compare_archives(folder, model, contents, some),
            RAY: lambda: compare_ray(folder),
        }
        for part, measure in parts.items():  # each is kept as soon as it is known
            figures[part] = measure()
            publish("scale", figures, keep=count >= 1_000_000)


if __name__ == "__main__":
    main()
