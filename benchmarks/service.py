"""The service under load: `fedapt-runtime serve` with `lite` beside `classify` in this process.

    python benchmarks/service.py [--seconds 60] [--requests 1000000] [--only lite|requests]

Clients and server share the machine, so what the clients take is missing in the server. Every
figure of one run is on the same JPEGs of Office-Caltech10, and every answer is compared with the
label that `classify` gives. Then `--requests` requests with a tiny model, where HTTP is most of it,
counted on both sides. Writes benchmarks/results/service.json and service_requests.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from figures import publish
from photos import CLASSES, ROOT, photos_root
from PIL import Image
from service_clients import Found, Shot, fire, fire_at_rate, make_shot
from zero_shot import write_zero_shot

from fedapt.model.backbone import Backbone, load_backbone
from fedapt_export.fuse import build_zero_shot_manifest
from fedapt_export.head import zero_shot_head
from fedapt_export.swap import write_head
from fedapt_runtime import Classifier

CLIENTS, PHOTOS = 200, 400
TOKEN = "a-token-of-a-benchmark"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int

    def resident_mb(self) -> float:
        """Memory that the process holds (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_s(self) -> float:
        """CPU seconds of the process (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def classified(self) -> int:
        """Requests that it answered with 200, by its own count."""
        figures = httpx.get(f"http://127.0.0.1:{self.port}/metrics", headers=AUTH, timeout=60).text
        asked = 'fedapt_requests_total{method="POST",route="classify",status="200"} '
        found = [line.removeprefix(asked) for line in figures.splitlines() if asked in line]
        return int(float(found[0])) if found else 0


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[Server]:
    """`fedapt-runtime serve` on a free port."""
    tokens = model.parent / "tokens"
    tokens.write_text(TOKEN)
    command = [sys.executable, "-m", "fedapt_runtime", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--token-file", str(tokens), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = next(line for line in process.stderr if line.startswith("serving at "))
        yield Server(process, int(said.rsplit(":", 1)[1]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stderr.close()


def in_process(classifier: Classifier, paths: list[str]) -> float:
    """Images a second of `classify` without a server."""
    started = time.perf_counter()
    for _ in classifier.stream(paths):
        pass
    return len(paths) / (time.perf_counter() - started)


async def under_load(server: Server, shots: Sequence[Shot], seconds: float) -> dict[str, object]:
    """200 clients: speed, failures, memory, CPU time, and requests counted on both sides."""
    memory: list[float] = []

    async def watch() -> None:
        while True:
            memory.append(server.resident_mb())
            await asyncio.sleep(seconds / 60)

    watching = asyncio.create_task(watch())
    before, used = server.classified(), server.cpu_s()
    found = await fire(server.port, shots, CLIENTS, seconds)
    watching.cancel()
    settled = memory[len(memory) // 6 :]  # from second 10 of 60
    return {
        "images_per_second": round(found.a_second, 1),
        **found.quantiles_ms(),
        "requests": len(found.seconds),
        "counted_by_server": server.classified() - before,
        "wrong": found.wrong,
        "broken": found.broken,
        "server_cpu_ms": round(1e3 * (server.cpu_s() - used) / len(found.seconds), 2),
        "memory_mb": [round(m, 1) for m in (settled[0], max(settled), settled[-1])],
        "memory_growth": round(settled[-1] / settled[0] - 1, 3),
    }


async def swap_under_load(
    server: Server, shots: Sequence[Shot], heads: Sequence[bytes], seconds: float
) -> dict[str, object]:
    """The head is swapped once a second while 200 clients ask."""
    times: list[float] = []

    async def swap() -> None:
        async with httpx.AsyncClient(headers=AUTH, timeout=60) as client:
            while True:
                await asyncio.sleep(1)
                body = heads[len(times) % len(heads)]
                answer = await client.post(f"http://127.0.0.1:{server.port}/v1/head", content=body)
                times.append(answer.raise_for_status().json()["swap_ms"])

    swapping = asyncio.create_task(swap())
    found = await fire(server.port, shots, CLIENTS, seconds)
    swapping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await swapping
    return {
        "swaps": len(times),
        "swap_ms_median": round(statistics.median(times), 1),
        "swap_ms_max": round(max(times), 1),
        "requests": len(found.seconds),
        "wrong": found.wrong,
        "broken": found.broken,
    }


def measure_lite(folder: Path, seconds: float) -> dict[str, object]:
    """Every figure of `lite`."""
    backbone = load_backbone("lite")
    model = write_zero_shot(backbone, CLASSES, folder / "lite.onnx")
    paths = [str(path) for path in sorted(photos_root().glob("*/*/*.jpg"))[::6]][:PHOTOS]
    classifier = Classifier.load(model, device="cpu", performance_hint="throughput")
    labels = [prediction.label or "" for prediction in classifier.stream(paths)]
    shots = [
        make_shot(Path(path).read_bytes(), frozenset([label]))
        for path, label in zip(paths, labels, strict=True)
    ]
    shots = [replace(s, request=s.request.replace(b"TOKEN", TOKEN.encode(), 1)) for s in shots]
    alone = [in_process(classifier, paths)]
    figures: dict[str, object] = {}
    with serving(model) as server:
        asyncio.run(fire(server.port, shots, CLIENTS, 3))  # warm
        figures["load"] = load = asyncio.run(under_load(server, shots, seconds))
        alone.append(in_process(classifier, paths))
        one = asyncio.run(fire(server.port, shots, 1, seconds / 6))
        figures["one client"] = one.quantiles_ms()
        rate = float(str(load["images_per_second"])) / 2
        half = asyncio.run(fire_at_rate(server.port, shots, rate, seconds / 2))
        figures["half load"] = half.quantiles_ms() | {
            "a_second": round(half.a_second, 1),
            "wrong": half.wrong,
        }
        heads = write_heads(backbone, folder)
        figures["head swap"] = asyncio.run(
            swap_under_load(server, shots, heads, max(5.0, seconds / 3))
        )
    by_batch: dict[str, list[float]] = {"1": [], "8": []}
    for turn in range(2):
        for size in ("1", "8")[:: 1 - 2 * turn]:
            with serving(model, "--max-batch", size) as server:
                asyncio.run(fire(server.port, shots, CLIENTS, 3))
                found = asyncio.run(fire(server.port, shots, CLIENTS, seconds / 6))
                by_batch[size].append(found.a_second)
    alone.append(in_process(classifier, paths))
    speed, single = statistics.median(alone), one.quantiles_ms()["p50"]
    batches = {size: statistics.mean(speeds) for size, speeds in by_batch.items()}
    figures |= {
        "classify_images_per_second": [round(value, 1) for value in alone],
        "of_classify": round(float(str(load["images_per_second"])) / speed, 3),
        "half_load_p50_p99_of_one_client": [
            round(half.quantiles_ms()[name] / single, 2) for name in ("p50", "p95", "p99")
        ],
        "batching": {f"max_batch {size}": round(value, 1) for size, value in batches.items()},
        "batching_gain": round(batches["8"] / batches["1"], 3),
    }
    return figures


def write_heads(backbone: Backbone, folder: Path) -> list[bytes]:
    """Two heads with the same labels, from other prompts."""
    heads = []
    for name in ("a", "b"):
        out = folder / f"{name}.safetensors"
        manifest = replace(build_zero_shot_manifest(backbone, CLASSES), method=f"zero-shot {name}")
        write_head(zero_shot_head(backbone, CLASSES), manifest, out)
        heads.append(out.read_bytes())
    return heads


def count_requests(folder: Path, requests: int) -> dict[str, object]:
    """So many requests with a tiny model: what clients and server counted."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from tiny import write_tiny_clip  # type: ignore[import-not-found]

    backbone = load_backbone(str(write_tiny_clip(folder / "tiny")))
    model = write_zero_shot(backbone, ("bike", "mug", "mouse"), folder / "tiny.onnx")
    classifier = Classifier.load(model, device="cpu")
    shots = []
    for i in range(64):
        path = folder / f"{i}.png"
        Image.new("RGB", (64, 64), (i * 4, 255 - i * 3, i * 31 % 256)).save(path)
        label = classifier([path])[0].label or ""
        shot = make_shot(path.read_bytes(), frozenset([label]))
        shots.append(replace(shot, request=shot.request.replace(b"TOKEN", TOKEN.encode(), 1)))
    with serving(model) as server:
        found: Found = asyncio.run(fire(server.port, shots, 64, float("inf"), requests))
        return {
            "sent": requests,
            "answered": len(found.seconds),
            "counted_by_server": server.classified(),
            "wrong": found.wrong,
            "broken": found.broken,
            "a_second": round(found.a_second, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the long load [60]")
    parser.add_argument("--requests", type=int, default=1_000_000, help="with the tiny model")
    parser.add_argument("--only", choices=("lite", "requests"), help="one part [both]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only != "requests":
            figures = measure_lite(folder, options.seconds)
            figures = {"seconds": options.seconds, "lite": figures}
            publish("service", figures, keep=options.seconds >= 60)
        if options.only != "lite":
            figures = count_requests(folder, options.requests)
            publish("service_requests", figures, keep=options.requests >= 1_000_000)


if __name__ == "__main__":
    main()
