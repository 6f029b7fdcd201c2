"""A check of the optional packages and devices, with the command that installs a missing one."""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from fedapt_runtime.backends.cuda import import_cuda
from fedapt_runtime.backends.engine_file import FLAVOURS
from fedapt_runtime.backends.engine_plan import MODULES, import_library
from fedapt_runtime.backends.openvino import import_openvino
from fedapt_runtime.backends.ort import import_onnxruntime
from fedapt_runtime.errors import ReportedError
from fedapt_runtime.vector_resize import load_vector_code


@dataclass(frozen=True)
class Finding:
    """One optional package or device.

    Attributes:
        name: name of the package or device.
        is_there: whether it works on this machine.
        detail: version and details; or the reason why it does not work.
        install: the command that installs it; empty if it works.
    """

    name: str
    is_there: bool
    detail: str
    install: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return vars(self)


def examine() -> list[Finding]:
    """Look for every optional package and device; installs nothing."""
    return [
        look_for("NVIDIA GPU", _gpus, "install the NVIDIA driver (not available through pip)"),
        look_for("ONNX Runtime", _onnxruntime, "pip install 'fedapt-runtime[cpu]', or '[gpu]'"),
        recommend_on_x86(look_for("OpenVINO", _openvino, "pip install 'fedapt-runtime[openvino]'")),
        recommend(look_for("llvmlite", _llvmlite, ""), "resizes images, with the same pixels"),
        look_for(
            "TensorRT engines", _tensorrt, "pip install 'fedapt-runtime[rtx]', or '[tensorrt]'"
        ),
        look_for("Ray", _ray, "pip install 'fedapt-runtime[ray]'"),
        look_for("Parquet", _parquet, "pip install 'fedapt-runtime[parquet]'"),
    ]


def look_for(name: str, look: Callable[[], str], install: str) -> Finding:
    """Look for one package or device.

    Args:
        name: its name.
        look: returns version and details, or raises an error.
        install: the command that installs it.
    """
    try:
        return Finding(name, is_there=True, detail=look())
    except ReportedError as error:
        return Finding(name, is_there=False, detail=error.found, install=error.next_step)
    except PackageNotFoundError as error:
        return Finding(name, is_there=False, detail=f"no package {error.name}", install=install)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return Finding(name, is_there=False, detail=str(error), install=install)


def recommend_on_x86(finding: Finding) -> Finding:
    """The finding; on x86, a missing one also gives the reason to install it."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return finding
    return recommend(finding, "on x86 the runtime uses the faster of both")


def recommend(finding: Finding, reason: str) -> Finding:
    """The finding; a missing one also gives the reason to install it."""
    if finding.is_there:
        return finding
    return replace(finding, install=f"{finding.install} (recommended: {reason})")


def _gpus() -> str:
    if shutil.which("nvidia-smi") is None:
        raise OSError("nvidia-smi not found")
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return "; ".join(done.stdout.strip().splitlines())


def _onnxruntime() -> str:
    onnxruntime = import_onnxruntime()
    providers = [p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers()]
    return f"{onnxruntime.__version__}, {', '.join(providers)}"


def _openvino() -> str:
    import_openvino()
    return version("openvino")


def _llvmlite() -> str:
    load_vector_code()
    return version("llvmlite")


def _tensorrt() -> str:
    found = []
    for flavour, module in MODULES.items():
        if find_spec(module) is not None:
            found.append(f"{FLAVOURS[flavour]} {import_library(flavour).__version__}")
    if not found:
        raise ImportError(f"none of {', '.join(MODULES.values())}")
    import_cuda()
    return f"{', '.join(found)}, cuda-bindings {version('cuda-bindings')}"


def _ray() -> str:
    importlib.import_module("ray.data")
    return version("ray")


def _parquet() -> str:
    import pyarrow.parquet  # noqa: F401

    return f"pyarrow {version('pyarrow')}"
