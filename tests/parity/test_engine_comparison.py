"""The comparison of an engine with ONNX Runtime, shown on graphs that are wrong in known ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedapt.core.errors import ParityError
from fedapt_export import engine as engine_module
from fedapt_export.engine import EngineSettings, build_engine
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.engine_file import EngineFile
from fedapt_runtime.backends.ort_backend import OrtBackend
from fedapt_runtime.engine_comparison import EngineReport, compare_engine
from fedapt_runtime.options import LoadOptions


class Wrong:
    """ONNX Runtime's own results, spoiled in one way."""

    def __init__(self, backend: OrtBackend, kind: str, at: int) -> None:
        self._backend, self._kind, self._at = backend, kind, at
        self.manifest, self.description = backend.manifest, kind
        self.sizes: list[int] = []

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        self.sizes.append(len(images))
        logits, *others = self._backend.run(images)
        logits = logits.copy()
        if len(images) == self._at:
            if self._kind == "last row":  # a row read from its neighbour's place
                logits[-1] = -logits[-1]
            elif self._kind == "nan":
                logits[0, 0] = np.nan
            elif self._kind == "all":
                logits = -logits
        return Outputs(logits, *others)


@pytest.fixture(scope="module")
def backend(tiny_model: Path) -> OrtBackend:
    return OrtBackend(tiny_model, LoadOptions(device="cpu"))


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def test_a_right_engine_passes_at_every_size(
    backend: OrtBackend, images: NDArray[np.uint8]
) -> None:
    engine = Wrong(backend, "right", 0)
    report = compare_engine(engine, backend, images, 1, 4, 9)
    report.check("fp32", "model.engine")
    assert report.batch_sizes == (1, 3, 4, 9)
    assert engine.sizes == [1, 1, 3, 3, 4, 4, 9, 9]
    assert report.probability_difference < 1e-5


@pytest.mark.parametrize("size", [1, 3, 4, 9])
@pytest.mark.parametrize("kind", ["all", "nan"])
def test_an_engine_that_is_wrong_at_one_size_is_refused(
    backend: OrtBackend, images: NDArray[np.uint8], kind: str, size: int
) -> None:
    report = compare_engine(Wrong(backend, kind, size), backend, images, 1, 4, 9)
    with pytest.raises(ParityError, match=r"differs from ONNX Runtime by .*batches of 1, 3, 4, 9"):
        report.check("fp16", "model.engine")


def test_one_wrong_row_shows_in_every_figure(
    backend: OrtBackend, images: NDArray[np.uint8]
) -> None:
    report = compare_engine(Wrong(backend, "last row", 4), backend, images, 1, 4, 9)
    assert report.probability_difference > 1e-3
    assert report.repeated_difference > 1e-3  # the last row repeats the first
    assert report.permuted_difference > 1e-3


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((1e-6, 0.1, 0.0), "whose results for one image differ by 1.00e-01"),
        ((1e-6, 0.0, 0.1), "whose results in another order differ by 1.00e-01"),
        ((1e-6, float("nan"), 0.0), "results for one image differ by nan"),
    ],
)
def test_each_figure_has_its_limit(figures: tuple[float, float, float], text: str) -> None:
    EngineReport((1,), 1e-6, 1e-6, 1e-6).check("fp32", "model.engine")
    with pytest.raises(ParityError, match=text) as caught:
        EngineReport((1,), *figures).check("fp16", "model.engine")
    assert caught.value.exit_code == 7


def test_the_limit_follows_the_precision() -> None:
    report = EngineReport((1,), 1e-2, 0.0, 0.0)
    report.check("fp16", "model.engine")
    with pytest.raises(ParityError, match="expected at most 1e-03 in class probabilities"):
        report.check("fp32", "model.engine")


# before an engine is written


@pytest.mark.parametrize(("kind", "is_wrong"), [("right", False), ("all", True)])
def test_where_its_gpu_is_here_an_engine_is_run_before_it_is_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_wrong: bool
) -> None:
    asked: list[EngineFile] = []

    def load(engine: EngineFile) -> Wrong:
        asked.append(engine)
        assert (engine.min_batch, engine.opt_batch, engine.max_batch) == (1, 4, 9)
        return Wrong(OrtBackend(tiny_model, LoadOptions(device="cpu")), kind, 4)

    def build(model: Path, out: Path, settings: EngineSettings) -> dict[str, str]:
        out.write_bytes(b"plan")
        return {"library": "tensorrt", "version": "11.4.0"}

    monkeypatch.setattr(engine_module, "find_gpu", lambda: "sm90")
    monkeypatch.setattr(engine_module, "find_spec", lambda _: object())
    monkeypatch.setattr("fedapt_runtime.engine_check.TensorRtBackend", load)
    monkeypatch.setattr(engine_module, "_run_builder", build)
    out = tmp_path / "model.engine"
    settings = EngineSettings("tensorrt", min_batch=1, opt_batch=4, max_batch=9)
    if is_wrong:
        out.write_bytes(b"older")
        with pytest.raises(ParityError, match="differs from ONNX Runtime"):
            build_engine(tiny_model, out, settings)
        assert out.read_bytes() == b"older"
        assert [path.name for path in tmp_path.iterdir()] == ["model.engine"]
    else:
        description = build_engine(tiny_model, out, settings)
        assert description["verified"]["batch_sizes"] == (1, 3, 4, 9)
        assert description["compute_capabilities"] == ["sm90"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model.engine", "model.engine.json"]
    assert len(asked) == 1
