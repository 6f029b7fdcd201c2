"""Which backend runs what, and what is told of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedapt_runtime import Classifier
from fedapt_runtime.backends import choose, ort
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.choose import PERFORMANCE_HINTS, load_backend
from fedapt_runtime.cli import main
from fedapt_runtime.errors import MissingDependency, ModelFileError, RuntimeFailure

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
    monkeypatch.setattr(ort, "open_compute_stream", lambda: compute)
    monkeypatch.setattr(ort, "open_streams", open_streams)


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
    assert load_backend(tiny_model, device="cpu").description == "ONNX Runtime 9.9 on cpu"
    with pytest.raises(
        RuntimeFailure,
        match="device cuda: found ONNX Runtime running on CPUExecutionProvider; expected CUDA",
    ):
        load_backend(tiny_model, device="cuda")
    with pytest.raises(RuntimeFailure, match="device: found 'tensorrt-ep'; expected auto, cpu or"):
        load_backend(tiny_model, "tensorrt-ep")


def test_tensorrt_inside_onnx_runtime_falls_back_to_cuda_alone(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "tensorrt-ep", "cuda", "cpu", starts=("tensorrt-ep", "cuda"))
    backend = load_backend(tiny_model, "tensorrt-ep")
    assert backend.description == "ONNX Runtime 9.9 on tensorrt-ep"
    providers = backend._session.get_providers()  # type: ignore[attr-defined]
    assert providers == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]


def test_tensorrt_that_does_not_start_says_which_version_it_takes(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "tensorrt-ep", "cuda", "cpu", starts=("cuda",))
    with pytest.raises(RuntimeFailure, match=r"To do: pip install 'tensorrt<11', whose libnvinfer"):
        load_backend(tiny_model, "tensorrt-ep")


def test_float32_means_float32_on_cuda(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_providers(monkeypatch, "cuda", "cpu", starts=("cuda",))
    backend = load_backend(tiny_model, device="cuda")
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

    monkeypatch.setattr(ort, "open_session", refuse_graphs)
    description = load_backend(tiny_model, device="cuda").description
    assert description == "ONNX Runtime 9.9 on cuda, without CUDA graphs"


def test_auto_without_cuda_bindings_takes_the_cpu_and_says_why(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "cuda", "cpu", starts=("cuda",))

    def missing() -> Any:
        raise MissingDependency(where="cuda-bindings", found="none", expected="", next_step="")

    monkeypatch.setattr(ort, "open_compute_stream", missing)
    told = "ONNX Runtime 9.9 on cpu (auto: CUDA is there, cuda-bindings is not)"
    assert load_backend(tiny_model).description == told
    with pytest.raises(MissingDependency, match="cuda-bindings"):
        load_backend(tiny_model, device="cuda")


def test_a_damaged_model_is_told_as_such_where_cuda_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "cuda", "cpu", starts=("cuda",))
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")  # a version and no graph
    with pytest.raises(ModelFileError, match="a file that ONNX Runtime cannot load"):
        load_backend(tmp_path / "model.onnx")


@needs_openvino
def test_openvino_is_taken_where_it_alone_is_installed(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        choose, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    description = Classifier.load(tiny_model).description
    assert description.startswith("OpenVINO 20")
    assert description.endswith(" on cpu (auto: no ONNX Runtime)")


def test_with_neither_the_first_choice_is_asked_for(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
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
        ("m.onnx", "tensorrt", "auto", "m.onnx: found no engine for the backend tensorrt"),
        (
            "m.engine",
            "onnxruntime",
            "auto",
            "found an engine for the backend onnxruntime; expected",
        ),
        ("m.engine", "openvino", "cpu", "found an engine for the backend openvino"),
        (
            "m.engine",
            "auto",
            "cpu",
            "device: found 'cpu' for the backend tensorrt; expected auto or",
        ),
        ("m.onnx", "openvino", "cuda", "device: found 'cuda' for the backend openvino; expected"),
        ("m.onnx", "tensorrt-ep", "cpu", "device: found 'cpu' for the backend tensorrt-ep"),
        ("m.onnx", "auto", "tpu", "device: found 'tpu' for the backend onnxruntime; expected auto"),
    ],
)
def test_what_does_not_go_together_is_refused(
    name: str, backend: str, device: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeFailure, match=text):
        load_backend(tmp_path / name, backend, device)


def test_the_command_line_takes_a_backend(
    tiny_model: Path, tiny_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(tiny_images / "photo" / "stripes" / "000.png")
    assert main(["classify", str(tiny_model), image, "--backend", "onnxruntime"]) == 0
    assert "ONNX Runtime" in capsys.readouterr().err
    assert main(["classify", str(tiny_model), image, "--backend", "tensorrt"]) == 8
    assert "leave --backend out" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["classify", str(tiny_model), image, "--backend", "abacus"])
    assert caught.value.code == 2


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_performance_hints_on_a_cpu(tiny_model: Path, backend: str) -> None:
    latency, throughput = (
        load_backend(tiny_model, backend, performance_hint=hint) for hint in PERFORMANCE_HINTS
    )
    assert (latency.in_flight, latency.default_batch) == (1, 32)
    assert (throughput.in_flight, throughput.default_batch) == (os.cpu_count(), 8)
    of_three = load_backend(tiny_model, backend, threads=3, performance_hint="throughput")
    assert (of_three.in_flight, of_three.default_batch) == (3, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    for a, b in zip(latency.run(pixels), throughput.run(pixels), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_a_gpu_has_two_batches_whatever_the_hint(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_providers(monkeypatch, "cuda", "cpu", starts=("cuda",))
    for hint in PERFORMANCE_HINTS:
        backend = load_backend(tiny_model, performance_hint=hint)
        assert (backend.in_flight, backend.default_batch) == (2, 64)


def test_threads_of_a_session(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = ort.open_session

    def listen(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(ort, "open_session", listen)
    for threads, hint in ((0, "latency"), (3, "latency"), (0, "throughput"), (3, "throughput")):
        load_backend(tiny_model, device="cpu", threads=threads, performance_hint=hint)
    assert asked == [0, 3, 1, 1]


def test_an_unknown_performance_hint_is_refused(tiny_model: Path) -> None:
    with pytest.raises(
        RuntimeFailure, match="performance_hint: found 'speed'; expected latency or throughput"
    ):
        load_backend(tiny_model, performance_hint="speed")
