"""OpenVINO, on the CPU. Intel's own kernels, from the same .onnx file."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.border import (
    Slot,
    check_model_file,
    check_signature,
    probe,
)
from fedapt_runtime.backends.cpu_plan import plan_cpu_work
from fedapt_runtime.errors import MissingDependency, ModelFileError, first_line
from fedapt_runtime.head import Tensor, read_head
from fedapt_runtime.machine import limit_threads
from fedapt_runtime.manifest import METADATA_KEY, parse_manifest
from fedapt_runtime.onnx_file import check_content, check_one_file


def import_openvino() -> Any:
    """Return the module `openvino`.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency(
            where="openvino",
            found=f"no usable OpenVINO ({error})",
            expected="openvino",
            next_step="pip install 'fedapt-runtime[openvino]'",
        ) from error
    return openvino


class OpenVinoBackend:
    """A fused model in OpenVINO, on the CPU.

    OpenVINO reads an initialiser that is also an input as a constant, so a head is put into the
    graph before it is compiled. Products stay in the graph's own precision: by itself OpenVINO
    would turn them to bfloat16 where the processor has it.

    Args:
        path: the .onnx file.
        head: a head file to use in place of the model's own head.
        threads: of inference; 0 takes every core.
        throughput: the most images a second, rather than the soonest answer to one batch.

    Raises:
        ModelFileError: no such file, not ONNX, not a fedapt model, or a head of another CLIP.
        MissingDependency: OpenVINO is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        head: str | Path | None = None,
        threads: int = 0,
        throughput: bool = False,
    ) -> None:
        path = Path(path)
        check_model_file(path)
        check_one_file(path)
        self.in_flight, self.default_batch, _ = plan_cpu_work(threads, throughput)
        openvino = import_openvino()
        core = openvino.Core()
        try:
            model = core.read_model(path)
        except Exception as error:  # OpenVINO raises RuntimeError and several others
            raise _unreadable(path, error) from error
        self.manifest = parse_manifest(_read_metadata(model), path)
        inputs, outputs = _slots(model.inputs), _slots(model.outputs)
        check_signature(inputs, outputs, self.manifest, path)
        if head is not None:
            head_file = read_head(head)
            head_file.check_fits(self.manifest, head)
            self.manifest = head_file.manifest_on(self.manifest)
            _put_head(openvino, model, head_file.feeds(), path)
        try:
            model.validate_nodes_and_infer_types()  # a head may have changed sizes
            options = {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": limit_threads(threads),
                "NUM_STREAMS": self.in_flight,
            }
            self._compiled = core.compile_model(model, "CPU", options)
        except Exception as error:
            raise _unreadable(path, error) from error
        self.description = f"OpenVINO {version('openvino')} on cpu"
        # a request is for one caller at a time; there are as many as there ever were callers
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        probe(self, path if head is None else head)
        check_content(path, METADATA_KEY)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `base.Backend.run`."""
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            request.infer({"images": images}, share_inputs=True)
            # copied: the next call of this request writes over them
            return Outputs(*(request.get_tensor(name).data.copy() for name in Outputs._fields))
        finally:
            self._idle.put(request)


def _read_metadata(model: Any) -> str | None:
    keys = ["framework", METADATA_KEY]  # where OpenVINO keeps an ONNX file's metadata_props
    return str(model.get_rt_info(keys).value) if model.has_rt_info(keys) else None


def _slots(ports: Any) -> dict[str, Slot]:
    dtypes = {"u8": "uint8", "f32": "float32"}
    return {
        port.get_any_name(): (
            dtypes.get(port.element_type.get_type_name(), port.element_type.get_type_name()),
            [None if size.is_dynamic else size.get_length() for size in port.partial_shape][1:],
        )
        for port in ports
    }


def _put_head(openvino: Any, model: Any, values: Mapping[str, Tensor], path: Path) -> None:
    """Replace the head's constants, which may change their sizes, before the graph is compiled."""
    missing = dict(values)
    for node in model.get_ops():
        value = missing.pop(node.get_friendly_name(), None)
        if value is not None:
            node.output(0).replace(openvino.opset13.constant(value).output(0))
    if missing:
        raise ModelFileError(
            where=path,
            found=f"a graph without {', '.join(sorted(missing))}",
            expected="a model whose head can be swapped",
            next_step="export the model again with `fedapt export`",
        )


def _unreadable(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(
        where=path,
        found=f"a file that OpenVINO cannot load ({first_line(error)})",
        expected="a model written by `fedapt export`",
        next_step="check the path, or export the model again",
    )
