"""Which backend runs what, and what is told of it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from fedapt_export.model_file import read_manifest, write_model
from fedapt_runtime import Classifier
from fedapt_runtime.backends import choose, ort, ort_backend, selection
from fedapt_runtime.backends import openvino as backends_openvino
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.choose import load_backend
from fedapt_runtime.backends.selection import Selection
from fedapt_runtime.cli import main
from fedapt_runtime.errors import MissingDependency, ModelFileError, RuntimeFailure
from fedapt_runtime.options import PERFORMANCE_HINTS, LoadOptions
from tests.support.fusing import save_changed

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed"
)


def pretend_providers(monkeypatch: pytest.MonkeyPatch, *names: str, starts: Sequence[str]) -> None:
    """An ONNX Runtime that names these providers, of which `starts` do start."""
    real = ort.import_onnxruntime()
    starting = [ort.PROVIDERS[name] for name in starts]

    class Session(real.InferenceSession):  # type: ignore[misc,name-defined]
        """On the CPU, whatever it says."""

        def __init__(self, model: object, options: object, providers: list[Any]) -> None:
            super().__init__(model, options, providers=["CPUExecutionProvider"])
            asked = [p if isinstance(p, str) else p[0] for p in providers]
            self.options = dict(p for p in providers if not isinstance(p, str))
            self.said = [p for p in asked if p in starting] or ["CPUExecutionProvider"]

        def get_providers(self) -> list[str]:
            return self.said

    fake = SimpleNamespace(
        __version__="9.9",
        SessionOptions=real.SessionOptions,
        InferenceSession=Session,
        get_available_providers=lambda: [ort.PROVIDERS[name] for name in names],
        preload_dlls=lambda: None,
        set_default_logger_severity=lambda level: None,
    )

    def open_streams(onnxruntime: Any, session: Any, *rest: Any) -> Any:
        return SimpleNamespace(
            run=lambda images: Outputs(*session.run(Outputs._fields, {"images": images}))
        )

    compute = SimpleNamespace(options=lambda graphs: {"enable_cuda_graph": str(int(graphs))})
    monkeypatch.setattr(ort, "import_onnxruntime", lambda: fake)
    monkeypatch.setattr(ort_backend, "import_onnxruntime", lambda: fake)
    monkeypatch.setattr(ort_backend, "open_compute_stream", lambda: compute)
    monkeypatch.setattr(ort_backend, "open_streams", open_streams)


@pytest.mark.parametrize(
    ("names", "starts", "told"),
    [
        (("cpu",), ("cpu",), "ONNX Runtime 9.9 on cpu (auto: no CUDA provider)"),
        (("cuda", "cpu"), ("cuda",), "ONNX Runtime 9.9 on cuda (auto: CUDA is there)"),
        (("cuda", "cpu"), ("cpu",), "ONNX Runtime 9.9 on cpu (auto: CUDA did not start)"),
    ],
)
def test_auto_says_what_it_chose_and_why(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    starts: tuple[str, ...],
    told: str,
) -> None:
    pretend_providers(monkeypatch, *names, starts=starts)
    assert Classifier.load(tiny_model).description == told


def test_what_was_asked_for_needs_no_reason_and_has_no_fallback(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "cuda", "cpu", starts=("cpu",))
    assert (
        load_backend(tiny_model, LoadOptions(device="cpu")).description == "ONNX Runtime 9.9 on cpu"
    )
    with pytest.raises(
        RuntimeFailure,
        match="device cuda: found ONNX Runtime running on CPUExecutionProvider; expected CUDA",
    ):
        load_backend(tiny_model, LoadOptions(device="cuda"))
    with pytest.raises(RuntimeFailure, match="device: found 'tensorrt-ep'; expected auto, cpu or"):
        load_backend(tiny_model, LoadOptions("tensorrt-ep"))


def test_tensorrt_inside_onnx_runtime_falls_back_to_cuda_alone(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "tensorrt-ep", "cuda", "cpu", starts=("tensorrt-ep", "cuda"))
    backend = load_backend(tiny_model, LoadOptions("tensorrt-ep"))
    assert backend.description == "ONNX Runtime 9.9 on tensorrt-ep"
    providers = backend._session.get_providers()  # type: ignore[attr-defined]
    assert providers == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]


def test_tensorrt_that_does_not_start_says_which_version_it_takes(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "tensorrt-ep", "cuda", "cpu", starts=("cuda",))
    with pytest.raises(RuntimeFailure, match=r"To do: pip install 'tensorrt<11', whose libnvinfer"):
        load_backend(tiny_model, LoadOptions("tensorrt-ep"))


def test_float32_means_float32_on_cuda(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_providers(monkeypatch, "cuda", "cpu", starts=("cuda",))
    backend = load_backend(tiny_model, LoadOptions(device="cuda"))
    options = backend._session.options["CUDAExecutionProvider"]  # type: ignore[attr-defined]
    assert (options["use_tf32"], options["enable_cuda_graph"]) == ("0", "1")


def test_a_model_that_no_graph_holds_runs_without_and_says_so(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "cuda", "cpu", starts=("cuda",))
    real = ort.open_session

    def refuse_graphs(*arguments: Any, cuda: Any = None) -> Any:
        if cuda and cuda["enable_cuda_graph"] == "1":
            raise ModelFileError(where="model", found="nodes on the CPU", expected="", next_step="")
        return real(*arguments, cuda=cuda)

    monkeypatch.setattr(ort_backend, "open_session", refuse_graphs)
    description = load_backend(tiny_model, LoadOptions(device="cuda")).description
    assert description == "ONNX Runtime 9.9 on cuda, without CUDA graphs"


def test_auto_without_cuda_bindings_takes_the_cpu_and_says_why(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "cuda", "cpu", starts=("cuda",))

    def missing() -> Any:
        raise MissingDependency(where="cuda-bindings", found="none", expected="", next_step="")

    monkeypatch.setattr(ort_backend, "open_compute_stream", missing)
    told = "ONNX Runtime 9.9 on cpu (auto: CUDA is there, cuda-bindings is not)"
    assert load_backend(tiny_model).description == told
    with pytest.raises(MissingDependency, match="cuda-bindings"):
        load_backend(tiny_model, LoadOptions(device="cuda"))


def test_a_damaged_model_is_told_as_such_where_cuda_is_there(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "cuda", "cpu", starts=("cuda",))
    model = onnx.load(tiny_model)
    model.graph.node[-1].op_type = "NoSuchOperator"
    save_changed(model, tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="a file that ONNX Runtime cannot load"):
        load_backend(tmp_path / "model.onnx")


@needs_openvino
def test_openvino_is_taken_where_it_alone_is_installed(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        choose, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    monkeypatch.delenv("FEDAPT_BACKEND")
    description = Classifier.load(tiny_model, compute="fp32").description
    assert description.startswith("OpenVINO 20")
    assert description.endswith(" on cpu (auto: no ONNX Runtime)")


def test_with_neither_the_first_choice_is_asked_for(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    monkeypatch.delenv("FEDAPT_BACKEND")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fedapt-runtime\[cpu\]'"):
        Classifier.load(tiny_model)


@pytest.mark.parametrize(
    ("name", "backend", "device", "text"),
    [
        (
            "m.onnx",
            "abacus",
            "auto",
            "backend: found 'abacus'; expected auto or one of onnxruntime",
        ),
        ("m.onnx", "tensorrt", "auto", "m.onnx: found an ONNX model for backend tensorrt"),
        (
            "m.engine",
            "onnxruntime",
            "auto",
            "found a TensorRT engine for backend onnxruntime; expected",
        ),
        ("m.engine", "openvino", "cpu", "found a TensorRT engine for backend openvino"),
        (
            "m.engine",
            "auto",
            "cpu",
            "device: found 'cpu' for the backend tensorrt; expected auto or",
        ),
        ("m.onnx", "openvino", "cuda", "device: found 'cuda' for the backend openvino; expected"),
        ("m.onnx", "tensorrt-ep", "cpu", "device: found 'cpu' for the backend tensorrt-ep"),
        ("m.onnx", "auto", "tpu", "device: found 'tpu' for the backend onnxruntime; expected auto"),
        (
            "m.onnx",
            "openvino",
            "tpu",
            "device: found 'tpu' for the backend openvino; expected auto",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    name: str, backend: str, device: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeFailure, match=text):
        load_backend(tmp_path / name, LoadOptions(backend, device))


def test_the_command_line_takes_a_backend(
    tiny_model: Path, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(tiny_images / "photo" / "stripes" / "000.png")
    assert main(["classify", str(tiny_model), image, "--backend", "onnxruntime"]) == 0
    assert "ONNX Runtime" in capsys.readouterr().err
    assert main(["classify", str(tiny_model), image, "--backend", "tensorrt"]) == 8
    assert "omit --backend" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["classify", str(tiny_model), image, "--backend", "abacus"])
    assert caught.value.code == 2


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_performance_hints_on_a_cpu(tiny_model: Path, backend: str) -> None:
    latency, throughput = (
        load_backend(tiny_model, LoadOptions(backend, performance_hint=hint))
        for hint in PERFORMANCE_HINTS
    )
    assert (latency.in_flight, latency.default_batch, latency.task_size) == (1, 32, 0)
    assert throughput.task_size == 32
    assert (throughput.in_flight, throughput.default_batch) == (os.cpu_count(), 8)
    of_three = load_backend(
        tiny_model, LoadOptions(backend, threads=3, performance_hint="throughput")
    )
    assert (of_three.in_flight, of_three.default_batch) == (3, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    for a, b in zip(latency.run(pixels), throughput.run(pixels), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@needs_openvino
@pytest.mark.parametrize(("most_bytes", "graphs", "task_size"), [(1 << 30, 3, 32), (0, 1, 8)])
def test_small_graphs_of_openvino_have_a_core_each(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    most_bytes: int,
    graphs: int,
    task_size: int,
) -> None:
    monkeypatch.setattr(backends_openvino, "_MAX_GRAPHS_BYTES", most_bytes)
    options = LoadOptions("openvino", threads=3, performance_hint="throughput")
    backend = load_backend(tiny_model, options)
    assert isinstance(backend, backends_openvino.OpenVinoBackend)
    assert (len(backend._graphs), backend.task_size) == (graphs, task_size)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    batches = np.split(pixels, 10)
    alone = load_backend(tiny_model, LoadOptions("openvino"))
    with ThreadPoolExecutor(5) as pool:  # more callers than graphs
        for found, batch in zip(pool.map(backend.run, batches), batches, strict=True):
            for a, b in zip(found, alone.run(batch), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_a_gpu_has_two_batches_whatever_the_hint(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "cuda", "cpu", starts=("cuda",))
    for hint in PERFORMANCE_HINTS:
        backend = load_backend(tiny_model, LoadOptions(performance_hint=hint))
        assert (backend.in_flight, backend.default_batch, backend.task_size) == (2, 64, 0)


def test_threads_of_a_session(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = ort.open_session

    def listen(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(ort_backend, "open_session", listen)
    for threads, hint in ((0, "latency"), (3, "latency"), (0, "throughput"), (3, "throughput")):
        load_backend(tiny_model, LoadOptions(device="cpu", threads=threads, performance_hint=hint))
    assert asked == [0, 3, 1, 1]


def test_an_unknown_performance_hint_is_refused(tiny_model: Path) -> None:
    with pytest.raises(
        RuntimeFailure, match="performance_hint: found 'speed'; expected latency or throughput"
    ):
        load_backend(tiny_model, LoadOptions(performance_hint="speed"))


@needs_openvino
def test_auto_measures_once_and_says_so(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEDAPT_BACKEND")
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path))
    monkeypatch.setattr(selection, "SECONDS", 0.0)
    monkeypatch.setattr(choose, "may_have_bfloat16", lambda: False)
    first = load_backend(tiny_model, LoadOptions(performance_hint="throughput"))
    assert first.description.endswith(" on cpu (auto: the fastest of 2 here, measured now)")
    assert first.description.count("auto") == 1
    again = load_backend(tiny_model, LoadOptions(device="cpu", performance_hint="throughput"))
    assert again.description.endswith("(auto: the fastest of 2 here, as measured before)")
    assert (again.name, again.default_batch) == (first.name, first.default_batch)
    (file,) = (tmp_path / "backends").iterdir()
    other = {"onnxruntime": "openvino", "openvino": "onnxruntime"}[first.name]
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"backend": other}))
    assert (
        load_backend(tiny_model, LoadOptions(device="cpu", performance_hint="throughput")).name
        == other
    )


@needs_openvino
def test_a_small_job_takes_the_backend_that_starts_first(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEDAPT_BACKEND")
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path))
    monkeypatch.setattr(selection, "SECONDS", 0.0)
    small = load_backend(tiny_model, LoadOptions(n_images=choose.SMALL_JOB - 1))
    assert small.name == "onnxruntime"
    assert small.description.endswith(" on cpu (auto: fewer than 64 images)")
    assert not (tmp_path / "backends").exists()  # nothing was measured
    asked = load_backend(tiny_model, LoadOptions("openvino", n_images=1))
    assert asked.name == "openvino"
    large = load_backend(tiny_model, LoadOptions(n_images=choose.SMALL_JOB))
    assert "the fastest of" in large.description


@needs_openvino
def test_the_environment_stands_for_auto_and_for_nothing_else(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDAPT_BACKEND", "openvino")
    assert load_backend(tiny_model).name == "openvino"
    assert load_backend(tiny_model, LoadOptions("onnxruntime")).name == "onnxruntime"
    monkeypatch.setenv("FEDAPT_COMPUTE", "bf16")
    with pytest.raises(RuntimeFailure, match="compute: found 'bf16' for the backend onnxruntime"):
        load_backend(tiny_model, LoadOptions("onnxruntime"))
    assert load_backend(tiny_model, LoadOptions("onnxruntime", compute="fp32")).compute == "fp32"
    monkeypatch.setenv("FEDAPT_COMPUTE", "int3")
    with pytest.raises(
        RuntimeFailure, match="FEDAPT_COMPUTE: found 'int3'; expected auto or one of fp32"
    ):
        load_backend(tiny_model)
    monkeypatch.setenv("FEDAPT_BACKEND", "abacus")
    with pytest.raises(RuntimeFailure, match="FEDAPT_BACKEND: found 'abacus'; expected auto or"):
        load_backend(tiny_model)
    with pytest.raises(ModelFileError, match=r"m\.engine"):  # an engine has one backend
        load_backend("m.engine")


def test_an_unknown_compute_precision_is_refused(tiny_model: Path) -> None:
    with pytest.raises(
        RuntimeFailure, match="compute: found 'fp64'; expected auto or one of fp32, "
    ):
        load_backend(tiny_model, LoadOptions(compute="fp64"))


def agreeing(path: Path, model: Path, images: int, changed: int) -> Path:
    """A copy whose manifest says so of bfloat16."""
    copy = onnx.load(model)
    manifest = read_manifest(copy, model)
    parity = {**manifest.parity, "computed_in": {"bf16": {"images": images, "changed": changed}}}
    write_model(copy, dataclasses.replace(manifest, parity=parity), path)
    return path


class Bfloat16Core:
    """OpenVINO on a processor that has bfloat16, as far as this one can: products are float32."""

    hints: ClassVar[list[str]] = []
    follows = True

    def __init__(self) -> None:
        import openvino

        self._core = openvino.Core()

    def get_property(self, device: str, name: str) -> list[str]:
        return [*self._core.get_property(device, name), "BF16"]

    def read_model(self, path: Path) -> Any:
        return self._core.read_model(path)

    def compile_model(self, model: Any, device: str, options: dict[str, Any]) -> Any:
        self.hints.append(options["INFERENCE_PRECISION_HINT"])
        compiled = self._core.compile_model(
            model, device, options | {"INFERENCE_PRECISION_HINT": "f32"}
        )
        if not (self.follows and self.hints[-1] == "bf16"):
            return compiled
        told = SimpleNamespace(get_type_name=lambda: "bf16")
        return SimpleNamespace(
            create_infer_request=compiled.create_infer_request, get_property=lambda name: told
        )


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> type[Bfloat16Core]:
    import openvino

    monkeypatch.setattr(Bfloat16Core, "hints", [])
    monkeypatch.setattr(choose, "may_have_bfloat16", lambda: True)
    fake = SimpleNamespace(Core=Bfloat16Core, Model=openvino.Model, opset13=openvino.opset13)
    monkeypatch.setattr(backends_openvino, "import_openvino", lambda: fake)
    return Bfloat16Core


@needs_openvino
def test_bfloat16_is_for_the_tower_and_the_head_stays_float32(
    tiny_model: Path, bfloat16: type[Bfloat16Core]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    expected = load_backend(tiny_model, LoadOptions("onnxruntime")).run(pixels)
    backend = load_backend(tiny_model, LoadOptions("openvino", compute="bf16"))
    assert bfloat16.hints == ["bf16", "f32"]
    assert (backend.compute, backend.description.endswith(" on cpu in bf16")) == ("bf16", True)
    for _ in range(2):  # a request is used again
        for a, b in zip(backend.run(pixels), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@needs_openvino
def test_this_processor_multiplies_in_bfloat16(tiny_model: Path) -> None:
    if not backends_openvino.has_bfloat16():
        pytest.skip("a processor with bfloat16 products is needed")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    exact, rounded = (
        load_backend(tiny_model, LoadOptions("openvino", compute=compute)).run(pixels)
        for compute in ("fp32", "bf16")
    )
    length = np.linalg.norm(exact.features, axis=-1, keepdims=True)
    gap = np.abs(rounded.features - exact.features).max() / length.max()
    assert 1e-4 < gap < 0.05  # 8 bits of bfloat16 in a few layers; float32 rounds 1e-6
    assert rounded.logits.dtype == np.float32


@needs_openvino
def test_auto_takes_bfloat16_where_no_label_changed_and_says_so(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bfloat16: type[Bfloat16Core]
) -> None:
    monkeypatch.delenv("FEDAPT_BACKEND")

    def take_the_last(candidates: Any, load: Any, determined_by: Any, hint: str) -> Selection:
        return Selection(candidates[-1], 5, from_cache=False)

    monkeypatch.setattr(choose, "select", take_the_last)
    exact = load_backend(
        agreeing(tmp_path / "exact.onnx", tiny_model, 506, 0), LoadOptions(device="cpu")
    )
    assert (exact.compute, exact.default_batch) == ("bf16", 5)
    assert exact.description.endswith(
        "in bf16 (auto: the fastest of 3 here, measured now; bf16 changed no label of 506 images"
        " (at most 0.6 % at 95 % confidence))"
    )
    inexact = load_backend(
        agreeing(tmp_path / "inexact.onnx", tiny_model, 506, 1), LoadOptions(device="cpu")
    )
    assert inexact.compute == "fp32"
    assert inexact.description.endswith(
        "(auto: the fastest of 2 here, measured now; not bf16, which changed 1 of 506 labels)"
    )
    plain = agreeing(tmp_path / "plain.onnx", tiny_model, 0, 1)  # an entry that nobody could write
    assert load_backend(plain, LoadOptions(device="cpu")).description.endswith(
        "; not bf16, which was not compared in the export)"
    )


@needs_openvino
def test_the_only_backend_with_bfloat16_is_named_as_that(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, bfloat16: type[Bfloat16Core]
) -> None:
    monkeypatch.delenv("FEDAPT_BACKEND")
    backend = load_backend(tiny_model, LoadOptions(device="cpu", compute="bf16"))
    assert backend.description.endswith(" on cpu in bf16 (auto: alone has bf16)")


@needs_openvino
def test_bfloat16_where_there_is_none_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, bfloat16: type[Bfloat16Core]
) -> None:
    monkeypatch.setattr(bfloat16, "follows", False)
    with pytest.raises(RuntimeFailure, match="found products in f32, although bf16 was requested"):
        load_backend(tiny_model, LoadOptions("openvino", compute="bf16"))
    monkeypatch.undo()
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(RuntimeFailure, match="compute: found 'bf16' on a processor for which"):
            load_backend(tiny_model, LoadOptions("openvino", compute="bf16"))


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-ep"])
def test_a_backend_without_bfloat16_is_refused(tiny_model: Path, backend: str) -> None:
    with pytest.raises(RuntimeFailure, match=f"compute: found 'bf16' for the backend {backend}; "):
        load_backend(tiny_model, LoadOptions(backend, compute="bf16"))
