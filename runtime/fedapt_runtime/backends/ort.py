"""ONNX Runtime, on the CPU or on a CUDA GPU."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.errors import MissingDependency, ModelFileError, RuntimeFailure
from fedapt_runtime.head import Tensor, read_head
from fedapt_runtime.manifest import METADATA_KEY, parse_manifest

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_VARIANTS = ("onnxruntime", "onnxruntime-gpu")


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`, after making sure that exactly one variant is installed.

    onnxruntime and onnxruntime-gpu write to the same folder: with both installed, which one works
    depends on the order of installation, so both is refused rather than guessed.

    Raises:
        MissingDependency: none is installed, or both are.
    """
    installed = [name for name in _VARIANTS if _is_installed(name)]
    if len(installed) > 1:
        raise MissingDependency(
            where="onnxruntime",
            found="both onnxruntime and onnxruntime-gpu, which overwrite each other's files",
            expected="one of them",
            next_step="pip uninstall -y onnxruntime onnxruntime-gpu, then "
            "pip install 'fedapt-runtime[cpu]' or 'fedapt-runtime[gpu]'",
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            where="onnxruntime",
            found=f"no usable ONNX Runtime ({error})",
            expected="onnxruntime or onnxruntime-gpu",
            next_step="pip install 'fedapt-runtime[cpu]' (or [gpu] where there is an NVIDIA GPU)",
        ) from error
    return onnxruntime


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def choose_device(device: str, available: list[str]) -> str:
    """Turn `auto` into `cuda` where ONNX Runtime has it, else `cpu`; refuse what is not there.

    Raises:
        RuntimeFailure: an unknown device, or one that this ONNX Runtime lacks.
    """
    if device == "auto":
        return "cuda" if PROVIDERS["cuda"] in available else "cpu"
    if PROVIDERS.get(device) not in available:
        have = [name for name, provider in PROVIDERS.items() if provider in available]
        raise RuntimeFailure(
            where="device",
            found=repr(device),
            expected=f"auto, {' or '.join(have)} with the ONNX Runtime that is installed",
            next_step="choose one of these, or install 'fedapt-runtime[gpu]' in an environment"
            " without onnxruntime for CUDA",
        )
    return device


def _say(error: Exception) -> str:
    """The first line of a message that may have none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def open_session(
    onnxruntime: Any, model: str | bytes, device: str, where: object, threads: int = 0
) -> Any:
    """An InferenceSession on one device, without a silent fallback.

    Args:
        model: path or serialised model.
        device: `cpu` or `cuda`.
        where: what to call the model in messages.
        threads: threads of one operator on the CPU; 0 takes every core.

    Raises:
        ModelFileError: ONNX Runtime cannot read the model.
        RuntimeFailure: the device was asked for and did not start.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    providers = [PROVIDERS[device]]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise ModelFileError(
            where=where,
            found=f"a file that ONNX Runtime cannot load ({_say(error)})",
            expected="a model written by `fedapt export`",
            next_step="check the path, or export the model again",
        ) from error
    if PROVIDERS[device] not in session.get_providers():
        raise RuntimeFailure(
            where=f"device {device}",
            found=f"ONNX Runtime running on {', '.join(session.get_providers())}",
            expected=PROVIDERS[device],
            next_step="check the driver and CUDA libraries, or choose device cpu",
        )
    return session


class OrtBackend:
    """A fused model in ONNX Runtime.

    Args:
        path: the .onnx file.
        device: `auto`, `cpu` or `cuda`.
        head: a head file to use in place of the model's own head.

    Raises:
        ModelFileError: no such file, not ONNX, not a fedapt model, or a head of another CLIP.
        MissingDependency: ONNX Runtime is missing or installed twice.
        RuntimeFailure: the device is not available.
    """

    def __init__(
        self, path: str | Path, device: str = "auto", head: str | Path | None = None
    ) -> None:
        path = Path(path)
        if not path.is_file():
            raise ModelFileError(
                where=path,
                found="no such file" if not path.exists() else "not a file",
                expected="a model written by `fedapt export`",
                next_step="check the path",
            )
        onnxruntime = import_onnxruntime()
        device = choose_device(device, onnxruntime.get_available_providers())
        self._session = open_session(onnxruntime, str(path), device, path)
        self.manifest = parse_manifest(
            self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), path
        )
        self.description = f"ONNX Runtime {onnxruntime.__version__} on {device}"
        self._check_signature(path)
        self._head: dict[str, Tensor] = {}
        if head is not None:
            head_file = read_head(head)
            head_file.check_fits(self.manifest, head)
            self.manifest = head_file.manifest_on(self.manifest)
            self._head = head_file.feeds()
        self._probe(path if head is None else head)

    def _check_signature(self, path: Path) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        height, width = self.manifest.preprocessing.size
        found = {i.name: (i.type, list(i.shape)[1:]) for i in inputs}
        names = [o.name for o in outputs]
        if found != {"images": ("tensor(uint8)", [height, width, 3])} or names[:2] != [
            "logits",
            "domain_weights",
        ]:
            raise ModelFileError(
                where=path,
                found=f"inputs {found} and outputs {names}",
                expected=f"images uint8 [batch, {height}, {width}, 3], logits, domain_weights",
                next_step="export the model again with `fedapt export`",
            )

    def _probe(self, where: object) -> None:
        """Classify a black image: the first run allocates, and shows whether the names fit."""
        height, width = self.manifest.preprocessing.size
        counts = [len(self.manifest.classes), len(self.manifest.domains)]
        try:
            outputs = self.run(np.zeros((1, height, width, 3), dtype=np.uint8))
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise ModelFileError(
                where=where,
                found=f"a graph that does not run ({_say(error)})",
                expected="a model, and a head of the same CLIP",
                next_step="export both again with `fedapt export`",
            ) from error
        columns = [output.shape[-1] for output in outputs]
        if columns != counts:
            raise ModelFileError(
                where=where,
                found=f"a graph of {columns[0]} classes and {columns[1]} domains",
                expected=f"{counts[0]} and {counts[1]}, as its manifest names them",
                next_step="export the model again with `fedapt export`",
            )

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `base.Backend.run`."""
        feeds = {"images": images, **self._head}
        logits, weights = self._session.run(["logits", "domain_weights"], feeds)
        return logits, weights
