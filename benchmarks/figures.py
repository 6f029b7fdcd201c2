"""How a benchmark's figures are shown and kept."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from photos import ROOT

from fedapt_runtime.machine import processor_facts

RESULTS = ROOT / "benchmarks" / "results"
# of /proc/cpuinfo: what decides the speed of matrix products
MATRIX_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp")


def is_quick(description: str, what: str = "3 rounds") -> bool:
    """Whether the command asks for a check (`--quick`) instead of a result."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{what}: a check, no result")
    return bool(parser.parse_args().quick)


def publish(name: str, figures: Mapping[str, object], *, keep: bool = True) -> None:
    """Print what `benchmarks/NAME.py` found, with the command and the machine.

    `keep` writes it to `results/NAME.json` too: a quick check is no result.
    """
    report = {"command": f"python benchmarks/{name}.py", **figures, "machine": machine()}
    text = json.dumps(report, indent=2)
    print(text)
    if keep:
        (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")


def machine() -> dict[str, str | int]:
    """What the figures were measured on; packages that are not installed are left out."""
    names = ("torch", "open_clip_torch", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow")
    versions: dict[str, str | int] = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    facts = processor_facts()
    flags = (facts.get("flags") or facts.get("Features", "")).split()
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count() or 0,
        "processor": facts.get("model name", platform.machine()),
        "instructions": " ".join(flag for flag in MATRIX_FLAGS if flag in flags),
        **versions,
    }
