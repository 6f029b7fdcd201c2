"""model.onnx -> TensorRT engine, in one of two flavours.

`rtx` is TensorRT-RTX. It compiles ahead of time for compute capabilities, without a GPU. The
compilation is completed on the target machine, when it first loads the engine. `tensorrt` is
TensorRT 10 or 11. It measures kernels on the GPU that will run the engine.

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
from fedapt_runtime.backends.engine_file import describe_engine, description_path
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
    "tensorrt": "pip install 'fedapt[gpu]', which needs NVIDIA's package index",
}


@dataclass(frozen=True)
class EngineSettings:
    """Settings of a TensorRT engine.

    Attributes:
        flavour: `rtx`, `tensorrt` or `auto`. `auto` chooses `tensorrt` if it and a GPU are present,
            or if the engine needs a feature that `rtx` lacks (int8, refit, a timing cache); else
            `rtx`.
        capabilities: targets of `rtx`, such as `sm89`; empty uses the library's defaults.
        min_batch, opt_batch, max_batch: the optimisation profile of the batch axis.
        timing_cache: a file with measurements that makes later builds on the same GPU faster; only
            `tensorrt`.
        refit: whether weights can be replaced in the engine; only `tensorrt`.
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
        """The same settings with a definite flavour, checked against this machine.

        Args:
            precision: precision of the graph.

        Raises:
            UsageError: see `check`.
            ExportError: the flavour lacks a setting, or there is no GPU for it.
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
        """The reason why the engine must be built on another machine; empty if there is none.

        TensorRT needs its library and the GPU on this machine. TensorRT-RTX needs no GPU. `auto`
        without both libraries leaves the build to the machine with the GPU.

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
        if self.capabilities:  # TensorRT builds only for the GPU of this machine
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
                    next_step=f"omit {setting}: building again takes seconds",
                )
        if precision == "int8":
            raise ExportError(
                where="precision int8",
                found="the flavour rtx, whose int8 is for weights only",
                expected="fp32, fp16 or bf16",
                next_step="choose fp16, or the flavour tensorrt on a machine with the GPU",
            )

    def _check_tensorrt(self) -> None:
        if not find_gpu():
            raise ExportError(
                where="flavour tensorrt",
                found=_why_no_gpu(),
                expected="the GPU that the engine will run on: TensorRT measures on it",
                next_step="export on its machine, or use the flavour rtx, which needs no GPU",
            )
        if self.capabilities:
            raise ExportError(
                where="compute capability",
                found="the flavour tensorrt",
                expected="no targets: this flavour builds for the GPU of this machine",
                next_step="omit it, or use the flavour rtx",
            )


def find_gpu() -> str:
    """Compute capability, such as `sm90`, of the GPU that would run the engine; empty if none.

    The builder and the runtime both use the first GPU that CUDA_VISIBLE_DEVICES names.
    """
    try:
        return Gpu().capability
    except RuntimeFailure:
        return ""


def _why_no_gpu() -> str:
    try:
        return f"{Gpu().name}, which an earlier call did not find"
    except RuntimeFailure as error:
        return f"no usable NVIDIA GPU ({error.found})"


def _is_installed(flavour: str) -> bool:
    return find_spec(MODULES[flavour]) is not None


def build_engine(
    model: Path, out: Path, settings: EngineSettings, images: NDArray[np.uint8] | None = None
) -> dict[str, Any]:
    """Build `out` from a fused model, and write `out`.json beside it.

    If this machine has a target GPU, the engine is compared with the model before it is written.

    Args:
        model: an .onnx file with a manifest.
        out: the .engine file.
        settings: settings with any flavour; this function resolves them.
        images: images for the comparison, uint8 [n, height, width, 3]; None uses noise.

    Returns:
        The description: the model's manifest and hash, library, targets, batch profile, and the
        figures of the comparison, or None.

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
        description = {
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
            built_file = describe_engine(temporary, description)
            report = compare_with_model(
                built_file, OrtBackend(model, LoadOptions(device="cpu")), images
            )
            description["verified"] = report.to_dict()
    write_text(description_path(out), json.dumps(description, indent=2) + "\n")
    return description


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
        found = f"a builder that failed ({said[2:] or 'no message'})"
    cache = settings.timing_cache
    raise ExportError(
        where=model,
        found=found,
        expected="an engine",
        next_step=(f"remove the timing cache {cache} and build again, or " if cache else "")
        + f"report this with the model's name and the version of {settings.flavour};"
        " model.onnx is complete and runs in ONNX Runtime",
    )
