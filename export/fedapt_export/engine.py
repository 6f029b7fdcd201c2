"""model.onnx -> TensorRT engine, in one of two flavours.

`rtx` is TensorRT-RTX. It compiles ahead of time for compute capabilities, without a GPU, and
completes the compilation when the target first loads the engine. `tensorrt` is TensorRT 10 or 11.
It measures kernels on the GPU that will run the engine.

The engine file is a plain plan without a header. Its description is the file `<name>.engine.json`
beside it. A child process builds the engine, so a crash of the builder becomes an error message.
The types in the graph set the precision; no builder flag changes it.

Source: TensorRT documentation, "Strongly typed networks"; TensorRT-RTX documentation, "CPU-only
ahead-of-time compilation".
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

import numpy as np
from numpy.typing import NDArray

from fedapt.core.errors import DependencyError, ExportError, UsageError
from fedapt.core.files import claim_file, hash_file, replace_file, write_text
from fedapt_export.model_file import read_model
from fedapt_runtime.backends.cuda import Gpu
from fedapt_runtime.backends.engine_file import describe_engine, sidecar_path
from fedapt_runtime.backends.engine_plan import MODULES
from fedapt_runtime.backends.ort_backend import OrtBackend
from fedapt_runtime.engine_check import compare_with_model
from fedapt_runtime.errors import RuntimeFailure
from fedapt_runtime.options import LoadOptions

FLAVOURS = ("auto", *MODULES)
# TensorRT-RTX 1.7's targets; H100 and B200 (sm90, sm100) are targets of TensorRT only
CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
_DATA_CENTRE = ("sm90", "sm100", "sm103")
_INSTALL = {
    "rtx": "pip install 'fedapt[rtx]' (Linux or Windows, x86-64)",
    "tensorrt": "pip install 'fedapt[gpu]', which takes NVIDIA's package index",
}


@dataclass(frozen=True)
class EngineSettings:
    """Settings of a TensorRT engine.

    Attributes:
        flavour: `rtx`, `tensorrt`, or `auto`: `tensorrt` where it and a GPU are there, and where
            the engine needs what `rtx` lacks (int8, refit, a timing cache); else `rtx`.
        capabilities: `sm89` and the like, of `rtx`; empty takes the library's defaults.
        min_batch, opt_batch, max_batch: the optimisation profile of the batch axis.
        timing_cache: a file of `tensorrt` that later builds on the same GPU are faster with.
        refit: whether weights can be replaced in the engine, of `tensorrt`.
    """

    flavour: str = "auto"
    capabilities: tuple[str, ...] = ()
    min_batch: int = 1
    opt_batch: int = 32
    max_batch: int = 128
    timing_cache: Path | None = None
    refit: bool = False

    def check(self) -> None:
        """Refuse settings that are wrong on any machine.

        Raises:
            UsageError: an unknown flavour, or batch sizes out of order.
        """
        if self.flavour not in FLAVOURS:
            raise UsageError(
                where="flavour of TensorRT",
                found=repr(self.flavour),
                expected=", ".join(FLAVOURS),
                next_step="choose one of these",
            )
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UsageError(
                where="batch sizes min, opt, max",
                found=f"{self.min_batch}, {self.opt_batch}, {self.max_batch}",
                expected="1 <= min <= opt <= max",
                next_step="correct the sizes",
            )

    def resolve(self, precision: str = "fp32") -> EngineSettings:
        """The same settings with a flavour that works here; others are refused.

        Args:
            precision: precision of the graph.

        Raises:
            UsageError: see `check`.
            ExportError: settings that the flavour does not have, or no GPU for it.
            DependencyError: the library is not installed.
        """
        self.check()
        flavour = self._choose_flavour(precision)
        if not _is_installed(flavour):
            raise DependencyError(
                where=f"flavour {flavour} of TensorRT",
                found=f"no module {MODULES[flavour]}",
                expected="TensorRT-RTX" if flavour == "rtx" else "TensorRT 10 or 11",
                next_step=_INSTALL[flavour],
            )
        resolved = dataclasses.replace(self, flavour=flavour)
        if flavour == "rtx":
            resolved._check_rtx(precision)
        else:
            resolved._check_tensorrt()
        return resolved

    def find_obstacle(self, precision: str = "fp32") -> str:
        """Why the engine has to be built on another machine; empty where it need not.

        TensorRT needs its library and the GPU here; TensorRT-RTX needs no GPU. Without either
        library, `auto` leaves the build to the machine with the GPU.

        Args:
            precision: precision of the graph.
        """
        flavour = self._choose_flavour(precision)
        if flavour == "rtx" and (
            self.flavour == "rtx" or self.capabilities or _is_installed("rtx")
        ):
            return ""
        if not _is_installed("tensorrt"):
            return f"no module {MODULES['tensorrt']}"
        return "" if find_gpu() else _why_no_gpu()

    def _choose_flavour(self, precision: str) -> str:
        if self.flavour != "auto":
            return self.flavour
        if self.capabilities:  # an engine of TensorRT is for the GPU at hand alone
            return "rtx"
        needs_tensorrt = precision == "int8" or self.refit or self.timing_cache is not None
        native = _is_installed("tensorrt") and find_gpu()
        return "tensorrt" if needs_tensorrt or native else "rtx"

    def _check_rtx(self, precision: str) -> None:
        for name in self.capabilities:
            if name in CAPABILITIES:
                continue
            data_centre = name in _DATA_CENTRE
            raise ExportError(
                where="compute capability",
                found=name + (", a data centre GPU" if data_centre else ""),
                expected=f"targets of TensorRT-RTX: {', '.join(CAPABILITIES)}",
                next_step="build on that GPU with the flavour tensorrt"
                if data_centre
                else "check the spelling",
            )
        for setting, is_set in (("timing cache", self.timing_cache), ("refit", self.refit)):
            if is_set:
                raise ExportError(
                    where=setting,
                    found="the flavour rtx, which would need a GPU to build",
                    expected="the flavour tensorrt",
                    next_step=f"leave {setting} out: building again takes seconds",
                )
        if precision == "int8":
            raise ExportError(
                where="precision int8",
                found="the flavour rtx, whose int8 is for weights only",
                expected="fp32, fp16 or bf16",
                next_step="choose fp16, or the flavour tensorrt, which is built where its GPU is",
            )

    def _check_tensorrt(self) -> None:
        if not find_gpu():
            raise ExportError(
                where="flavour tensorrt",
                found=_why_no_gpu(),
                expected="the GPU that the engine will run on: TensorRT measures on it",
                next_step="export there, or use the flavour rtx, which builds without one",
            )
        if self.capabilities:
            raise ExportError(
                where="compute capability",
                found="the flavour tensorrt",
                expected="no targets: this flavour builds for the GPU of this machine",
                next_step="leave it out, or use the flavour rtx",
            )


def find_gpu() -> str:
    """Compute capability, such as `sm90`, of the GPU that would run the engine; empty without.

    It is the first that CUDA_VISIBLE_DEVICES names, for the builder as for the runtime.
    """
    try:
        return Gpu().capability
    except RuntimeFailure:
        return ""


def _why_no_gpu() -> str:
    try:
        return f"{Gpu().name}, which was not there a moment ago"
    except RuntimeFailure as error:
        return f"no usable NVIDIA GPU ({error.found})"


def _is_installed(flavour: str) -> bool:
    return find_spec(MODULES[flavour]) is not None


def build_engine(
    model: Path, out: Path, settings: EngineSettings, images: NDArray[np.uint8] | None = None
) -> dict[str, Any]:
    """Build `out` from a fused model, and write `out`.json beside it.

    Where the GPU is here that the engine is for, it is run before it is written.

    Args:
        model: an .onnx file with a manifest.
        out: the .engine file.
        settings: with any flavour; they are resolved here.
        images: to run it on, uint8 [n, height, width, 3]; noise where None.

    Returns:
        The sidecar: the model's manifest and hash, library, targets, batch profile, and what was
        measured of the engine, or None.

    Raises:
        DependencyError: the library is not installed.
        ExportError: a wrong setting, or the builder refused the graph or crashed.
        ParityError: the engine does not compute what the model computes; `out` is untouched.
        FileError: another job writes the output, or it cannot be written.
    """
    with claim_file(out):
        return _build_engine(model, out, settings, images)


def _build_engine(
    model: Path, out: Path, settings: EngineSettings, images: NDArray[np.uint8] | None
) -> dict[str, Any]:
    _, manifest = read_model(model)
    settings = settings.resolve(manifest.precision)
    gpu = find_gpu()
    with replace_file(out) as temporary:
        built = _run_builder(model, temporary, settings)
        targets = list(settings.capabilities) or ["default" if settings.flavour == "rtx" else gpu]
        sidecar = {
            "flavour": settings.flavour,
            "library": {"name": built["library"], "version": built["version"]},
            "compute_capabilities": targets,
            "batch": [settings.min_batch, settings.opt_batch, settings.max_batch],
            "refit": settings.refit,
            "onnx_sha256": hash_file(model),
            "engine_sha256": hash_file(temporary),
            "verified": None,
            "manifest": dataclasses.asdict(manifest),
        }
        if gpu and gpu in (*targets, *(CAPABILITIES if targets == ["default"] else ())):
            built_file = describe_engine(temporary, sidecar)
            report = compare_with_model(
                built_file, OrtBackend(model, LoadOptions(device="cpu")), images
            )
            sidecar["verified"] = report.to_dict()
    write_text(sidecar_path(out), json.dumps(sidecar, indent=2) + "\n")
    return sidecar


def _run_builder(model: Path, out: Path, settings: EngineSettings) -> dict[str, Any]:
    request = {"model": str(model), "out": str(out)} | dataclasses.asdict(settings)
    request["timing_cache"] = str(settings.timing_cache or "")
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
    said = f": {' '.join(done.stderr.split())[-400:]}" if done.stderr.strip() else ""
    if done.returncode < 0:
        found = f"a builder that crashed ({signal.Signals(-done.returncode).name}{said})"
    else:
        found = f"a builder that failed ({said[2:] or 'without a word'})"
    cache = settings.timing_cache
    raise ExportError(
        where=model,
        found=found,
        expected="an engine",
        next_step=(f"remove the timing cache {cache} and build again, or " if cache else "")
        + f"report this with the model's name and the version of {settings.flavour};"
        " model.onnx itself is whole and runs in ONNX Runtime",
    )
