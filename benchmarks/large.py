"""Training and export of large towers: seconds, and the memory that they take.

    python benchmarks/large.py [--towers NAME ...]     other towers keep their rows

Random weights of the true architectures, in safetensors files as users have them; their values do
not change speed or memory. Every job is a process of its own, one after another: `train` on 40
images for two rounds, `export` in float32 and float16, `export --head-only`. The first export
traces the tower, later ones take it from the cache. Two figures of memory, both peaks in GB: what
the process holds alone (anonymous), which a machine must have; and all resident pages, which
include mapped weights that the kernel can drop.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import RESULTS, publish
from photos import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / "tests"))

from support.families import write_tokenizer

TOWERS = ("ViT-L-14", "ViT-H-14", "ViT-SO400M-14-SigLIP")
INTERVAL_S = 0.02


def write_model(name: str, folder: Path) -> dict[str, float]:
    """A folder of OpenCLIP with random weights; the GB of its weights and of its image tower."""
    import torch
    from safetensors.torch import save_file

    from fedapt.model.open_clip_import import import_open_clip

    folder.mkdir()
    config = import_open_clip().get_model_config(name)
    config["text_cfg"].pop("hf_tokenizer_name", None)
    write_tokenizer(name, folder)
    if (folder / "tokenizer.json").is_file():
        config["text_cfg"]["hf_tokenizer_name"] = str(folder)
    size = config["vision_cfg"]["image_size"]
    whole = {"model_cfg": config, "preprocess_cfg": {"size": size, "interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    torch.manual_seed(0)
    clip = import_open_clip().create_model(f"local-dir:{folder}", load_weights=False)
    state = {key: tensor.contiguous() for key, tensor in clip.state_dict().items()}
    save_file(state, str(folder / "open_clip_model.safetensors"))
    sizes = {key: tensor.numel() * tensor.element_size() / 1e9 for key, tensor in state.items()}
    visual = sum(size for key, size in sizes.items() if key.startswith("visual."))
    return {"weights_gb": sum(sizes.values()), "image_tower_gb": visual}


def write_images(folder: Path) -> None:
    """Two domains, two classes, ten images each."""
    rng = np.random.default_rng(0)
    for domain in ("photo", "sketch"):
        for label in ("mug", "red"):
            (folder / domain / label).mkdir(parents=True)
            for i in range(10):
                pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / domain / label / f"{i}.png")


def read_gb(pid: int, field: str) -> float:
    """A size from the status of a process (Linux); 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def measure(arguments: list[str], cache: Path) -> dict[str, float]:
    """Run `fedapt` and follow its memory."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "fedapt.cli", *arguments],
        env=os.environ | {"FEDAPT_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peaks = {"own_gb": 0.0, "resident_gb": 0.0}
    done = threading.Event()

    def follow() -> None:
        while not done.wait(INTERVAL_S):
            for name, field in (("own_gb", "RssAnon:"), ("resident_gb", "VmHWM:")):
                peaks[name] = max(peaks[name], read_gb(process.pid, field))

    follower = threading.Thread(target=follow)
    follower.start()
    output, _ = process.communicate()
    done.set()
    follower.join()
    if process.returncode:
        sys.exit(output)
    return {"seconds": time.perf_counter() - started, **peaks}


def measure_tower(name: str, folder: Path) -> dict[str, Any]:
    """All jobs on one tower."""
    model, data, run, cache = (folder / part for part in ("model", "data", "run", "cache"))
    row: dict[str, Any] = write_model(name, model)
    # a short text tower (SigLIP's 16 tokens) has no room for the default of 24
    config = json.loads((model / "open_clip_config.json").read_text("utf-8"))["model_cfg"]
    context = min(24, config["text_cfg"]["context_length"] - 12)
    write_images(data)
    checkpoint = str(run / "checkpoint.safetensors")
    export = ["export", checkpoint, "--min-agreement", "0", "--parity-images", "4", "--force"]
    jobs = {
        "train": [
            *("train", "--data", str(data), "--out", str(run), "--model", str(model)),
            *("-o", "train.rounds=2", "-o", f"prompt.context_length={context}"),
        ],
        "export fp32": [*export, "--out", str(folder / "fp32.onnx")],
        "export fp16": [*export, "--precision", "fp16", "--out", str(folder / "fp16.onnx")],
        "head only": [*export, "--head-only", "--out", str(folder / "head.safetensors")],
    }
    for job, arguments in jobs.items():
        row[job] = measure(arguments, cache)
        print(name, job, row[job], flush=True)
    row["files_gb"] = {
        path.name: path.stat().st_size / 1e9 for path in sorted(folder.glob("fp*.onnx*"))
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--towers", nargs="+", default=list(TOWERS), metavar="NAME")
    towers = parser.parse_args().towers
    record = RESULTS / "large.json"
    rows = json.loads(record.read_text("utf-8"))["towers"] if record.is_file() else {}
    for name in towers:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure_tower(name, Path(folder))
        publish("large", {"towers": rows})


if __name__ == "__main__":
    main()
