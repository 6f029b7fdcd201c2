"""OpenVINO on the CPU: Intel's kernels for the same .onnx file."""

from __future__ import annotations

import queue
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.cpu_plan import TASK_SIZE, plan_cpu_work
from fedapt_runtime.backends.model_checks import (
    Slot,
    check_model_file,
    check_signature,
    describe_int8,
    probe,
)
from fedapt_runtime.errors import MissingDependency, ModelFileError, RuntimeFailure, first_line
from fedapt_runtime.head import Tensor, read_head
from fedapt_runtime.machine import limit_threads
from fedapt_runtime.manifest import METADATA_KEY, Manifest, parse_manifest
from fedapt_runtime.onnx_file import check_content, open_onnx
from fedapt_runtime.options import LoadOptions

_MAX_GRAPHS_BYTES = 1 << 30  # all files of the graphs that have a core each


def import_openvino() -> Any:
    """Return the module `openvino`, imported without its telemetry.

    OpenVINO reports its import to Intel through the package `openvino_telemetry`, which no
    environment variable can turn off. Without that package OpenVINO uses a stub.

    Raises:
        MissingDependency: OpenVINO is not installed.

    Source: OpenVINO, openvino/tools/ovc/telemetry_utils.py.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes its import fail
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


def has_bfloat16() -> bool:
    """Whether OpenVINO multiplies in bfloat16 on this processor.

    Raises:
        MissingDependency: OpenVINO is not installed.
    """
    return "BF16" in _capabilities(import_openvino().Core())


def _capabilities(core: Any) -> list[str]:
    # Source: OpenVINO, "Query device properties": ov::device::capabilities
    return [str(name) for name in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]


class OpenVinoBackend:
    """A fused model in OpenVINO, on the CPU.

    OpenVINO treats an initialiser that is also an input as a constant, so a head replaces the
    constants before the graph is compiled. OpenVINO's default is bfloat16 where the processor has
    it; here `compute` decides. `bf16` applies to the image tower only. The head, three small
    products that decide the label, is compiled separately in float32.

    Args:
        path: the .onnx file.
        options: `head`, `threads`, `performance_hint`, and `compute`, one of `options.COMPUTE`.

    Raises:
        ModelFileError: there is no such file, it is not ONNX or not a fedapt model, or the head is
            of another CLIP.
        MissingDependency: OpenVINO is not installed.
        RuntimeFailure: `bf16` on a processor without bfloat16 products, or for a graph that is not
            in float32.
    """

    def __init__(self, path: str | Path, options: LoadOptions) -> None:
        path, head, threads, compute = Path(path), options.head, options.threads, options.compute
        self.name, self.compute = "openvino", compute
        check_model_file(path)
        content = open_onnx(path)
        self.in_flight, self.default_batch, _ = plan_cpu_work(threads, options.throughput)
        openvino = import_openvino()
        core = openvino.Core()
        if compute == "bf16" and "BF16" not in (found := _capabilities(core)):
            raise RuntimeFailure(
                where="compute",
                found=f"'bf16' on a processor for which OpenVINO lists only {', '.join(found)}",
                expected="a processor with bfloat16 products (AVX-512 BF16, AMX)",
                next_step="choose fp32",
            )
        try:
            model = core.read_model(path)
        except Exception as error:  # OpenVINO raises RuntimeError and several others
            raise _unreadable(path, error) from error
        self.manifest = parse_manifest(content.metadata.get(METADATA_KEY), path)
        inputs, outputs = _slots(model.inputs), _slots(model.outputs)
        check_signature(inputs, outputs, self.manifest, path)
        if head is not None:
            head_file = read_head(head)
            head_file.check_fits(self.manifest, head)
            self.manifest = head_file.manifest_on(self.manifest)
            _put_head(openvino, model, head_file.feeds(), path)
        try:
            model.validate_nodes_and_infer_types()  # a head may have changed sizes
            parts = [(model, "f32")]
            if compute == "bf16":
                _check_float32(self.manifest, path)
                tower, own_head = _split(openvino, model)
                parts = [(tower, "bf16"), (own_head, "f32")]
            weights = (self.manifest.weights or {"bytes": 0})["bytes"]
            size = (path.stat().st_size + weights) * self.in_flight
            own_graphs = options.throughput and size <= _MAX_GRAPHS_BYTES
            self._graphs = _compile(core, parts, self.in_flight, own_graphs, limit_threads(threads))
            self.task_size = 0
            if options.throughput:
                self.task_size = TASK_SIZE if own_graphs else self.default_batch
        except RuntimeFailure:
            raise
        except Exception as error:
            raise _unreadable(path, error) from error
        if compute == "bf16":
            _check_bfloat16(self._graphs[0][0], path)
        in_compute = " in bf16" if compute == "bf16" else ""
        self.description = f"OpenVINO {version('openvino')} on cpu{in_compute}"
        self.description += describe_int8(self.manifest)
        # requests serve one caller at a time; new ones are created when none are idle
        self._idle: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        for graph in self._graphs:
            self._idle.put([part.create_infer_request() for part in graph])
        probe(self, path if head is None else head)
        check_content(path, content)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `base.Backend.run`."""
        try:
            requests = self._idle.get_nowait()
        except queue.Empty:
            requests = [part.create_infer_request() for part in self._graphs[0]]
        try:
            requests[0].infer({"images": images}, share_inputs=True)
            if len(requests) == 1:
                found = {name: requests[0].get_tensor(name) for name in Outputs._fields}
            else:
                features = requests[0].get_output_tensor(0)
                requests[1].infer([features], share_inputs=True)
                logits, weights = (requests[1].get_output_tensor(i) for i in (0, 1))
                found = {"logits": logits, "domain_weights": weights, "features": features}
            # copied, because the next call of these requests overwrites the arrays
            return Outputs(*(found[name].data.copy() for name in Outputs._fields))
        finally:
            self._idle.put(requests)


def _compile(
    core: Any, parts: list[tuple[Any, str]], in_flight: int, own_graphs: bool, threads: int
) -> list[list[Any]]:
    """The compiled parts of the graph: once for each of `in_flight` callers, or once for all.

    A graph with one stream runs in the thread that calls it. Several streams of one graph run in
    threads of their own, beside threads that decode, so some cores wait. A graph for each caller
    takes its own memory.
    """
    settings = {"NUM_STREAMS": in_flight, "INFERENCE_NUM_THREADS": threads}
    if own_graphs:
        # pinned, all graphs would run on the first core
        settings = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}

    def compile_once(_graph: int) -> list[Any]:
        return [
            core.compile_model(part, "CPU", {**settings, "INFERENCE_PRECISION_HINT": hint})
            for part, hint in parts
        ]

    n_graphs = in_flight if own_graphs else 1
    with ThreadPoolExecutor(n_graphs) as pool:
        return list(pool.map(compile_once, range(n_graphs)))


def _split(openvino: Any, model: Any) -> tuple[Any, Any]:
    """The image tower (images -> features) and the head (features -> logits, domain weights)."""
    sources = {name: model.output(name).get_node().input_value(0) for name in Outputs._fields}
    features = sources["features"]
    tower = openvino.Model([features], list(model.get_parameters()), "tower")
    entry = openvino.opset13.parameter(features.get_partial_shape(), features.get_element_type())
    for reader in features.get_target_inputs():
        if reader.get_node().get_type_name() != "Result":
            reader.replace_source_output(entry.output(0))
    head = openvino.Model([sources["logits"], sources["domain_weights"]], [entry], "head")
    return tower, head


def _check_float32(manifest: Manifest, path: Path) -> None:
    if manifest.precision != "fp32":
        raise RuntimeFailure(
            where=path,
            found=f"compute 'bf16' for a graph in {manifest.precision}",
            expected="a graph in fp32, whose products bf16 replaces",
            next_step="choose compute fp32, which keeps the graph's own types",
        )


def _check_bfloat16(compiled: Any, path: Path) -> None:
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != "bf16":  # OpenVINO ignores a hint that it cannot follow
        raise RuntimeFailure(
            where=path,
            found=f"products in {found}, although bf16 was requested",
            expected="bf16",
            next_step="choose compute fp32",
        )


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
