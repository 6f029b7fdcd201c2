"""model.onnx -> TensorRT-RTX engine, ahead of time and without a GPU.

TensorRT-RTX compiles for compute capabilities, not for the GPU at hand, and finishes on the target
when the engine is first loaded. The engine is a plain plan: nothing is put in front of it, and what
it is stands beside it, in `<name>.engine.json`. It is built in a child process, so that a crash of
the builder is an error message. Precision lives in the graph; no builder flag touches it.
Refitting is not offered: TensorRT-RTX 1.7 asks for a CUDA device to build a refittable engine, and
building another takes seconds.

Source: TensorRT-RTX documentation, "CPU-only ahead-of-time compilation".
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from fedapt.core.errors import DependencyError, ExportError
from fedapt.core.files import hash_file, replace_file, write_text
from fedapt_export.engine_builder import LIBRARY
from fedapt_export.fuse import read_manifest

# what TensorRT-RTX 1.7 names; H100 and B200 (sm90, sm100) are targets of plain TensorRT alone
CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
_DATA_CENTRE = ("sm90", "sm100", "sm103")


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is built for.

    Attributes:
        capabilities: `sm89` and the like; empty takes the library's defaults.
        least_batch, best_batch, most_batch: the optimisation profile of the batch axis.
    """

    capabilities: tuple[str, ...] = ()
    least_batch: int = 1
    best_batch: int = 32
    most_batch: int = 128

    def check(self) -> None:
        """Refuse what the library would refuse later, or accept and ignore.

        Raises:
            ExportError: an unknown target, or batch sizes out of order.
        """
        for name in self.capabilities:
            if name in CAPABILITIES:
                continue
            data_centre = name in _DATA_CENTRE
            raise ExportError(
                where="--compute-capability",
                found=name + (", a data centre GPU" if data_centre else ""),
                expected=f"targets of TensorRT-RTX: {', '.join(CAPABILITIES)}",
                next_step="run model.onnx with ONNX Runtime on that GPU; TensorRT-RTX cannot"
                if data_centre
                else "check the spelling",
            )
        if not 1 <= self.least_batch <= self.best_batch <= self.most_batch:
            raise ExportError(
                where="--min-batch, --opt-batch, --max-batch",
                found=f"{self.least_batch}, {self.best_batch}, {self.most_batch}",
                expected="1 <= min <= opt <= max",
                next_step="correct the sizes",
            )


def check_library() -> None:
    """Make sure that TensorRT-RTX can be imported, without importing it here.

    Raises:
        DependencyError: it is not installed.
    """
    if find_spec(LIBRARY) is None:
        raise DependencyError(
            where="--trt",
            found=f"no module {LIBRARY}",
            expected="TensorRT-RTX",
            next_step="pip install 'fedapt[rtx]' (Linux or Windows, x86-64)",
        )


def build_engine(model: Path, out: Path, settings: EngineSettings) -> dict[str, Any]:
    """Build `out` from a fused model, and write `out`.json beside it.

    Args:
        model: an .onnx file with a manifest.
        out: the .engine file.

    Returns:
        The sidecar: the model's manifest and hash, library, targets and batch profile.

    Raises:
        DependencyError: TensorRT-RTX is not installed.
        ExportError: a wrong setting, or the builder refused the graph or crashed.
        FileError: the output cannot be written.
    """
    settings.check()
    check_library()
    manifest = read_manifest(onnx.load(model), model)
    with replace_file(out) as temporary:
        built = _run_builder(model, temporary, settings)
        engine_sha256 = hash_file(temporary)
    sidecar = {
        "flavour": "rtx",
        "library": {"name": "tensorrt-rtx", "version": built["version"]},
        "compute_capabilities": list(settings.capabilities) or ["default"],
        "batch": [settings.least_batch, settings.best_batch, settings.most_batch],
        "onnx_sha256": hash_file(model),
        "engine_sha256": engine_sha256,
        "manifest": dataclasses.asdict(manifest),
    }
    write_text(out.with_name(out.name + ".json"), json.dumps(sidecar, indent=2) + "\n")
    return sidecar


def _run_builder(model: Path, out: Path, settings: EngineSettings) -> dict[str, Any]:
    request = {"model": str(model), "out": str(out)} | dataclasses.asdict(settings)
    done = subprocess.run(
        [sys.executable, "-m", "fedapt_export.engine_builder"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        built: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return built
    if done.returncode < 0:
        found = f"a builder that crashed ({signal.Signals(-done.returncode).name})"
    else:
        found = f"a builder that failed ({' '.join(done.stderr.split())[-400:]})"
    raise ExportError(
        where=model,
        found=found,
        expected="an engine",
        next_step="report this with the model's name and the version of TensorRT-RTX;"
        " model.onnx itself is whole and runs in ONNX Runtime",
    )
