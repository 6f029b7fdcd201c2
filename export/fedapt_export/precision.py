"""Precisions of the image tower, and what one costs and gains on this machine.

The head stays in float32 in all of them: it is three small products, and it decides.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fedapt.core.errors import ExportError, ParityError, UsageError
from fedapt_export.half import emulate_bfloat16, to_half
from fedapt_export.int8 import to_int8
from fedapt_runtime.backends.ort import PROVIDERS, import_onnxruntime, open_session
from fedapt_runtime.errors import ModelFileError

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
# unit features, torch in float32 against the graph; int8 answers for its labels alone
MAX_FEATURE_DIFFERENCE = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-2, "int8": 2.0}
# share of images whose best class may change against float32
MAX_DISAGREEMENT = {"fp32": 0.0, "fp16": 0.001, "bf16": 0.01, "int8": 0.01}
_BATCH = 32
_TURNS = 5


@dataclass(frozen=True)
class PrecisionReport:
    """A lower precision beside float32, on the same images and the same machine.

    Attributes:
        precision: of the tower.
        images: compared.
        disagreement: share of images with another best class.
        feature_difference: largest absolute difference of unit features.
        bytes, fp32_bytes: of the whole model.
        device: where speed was measured.
        images_per_s, fp32_images_per_s: at batches of 32, the best of five turns each; None where
            ONNX Runtime has no such operators on this device.
    """

    precision: str
    images: int
    disagreement: float
    feature_difference: float
    bytes: int
    fp32_bytes: int
    device: str
    images_per_s: float | None
    fp32_images_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def check(self, max_disagreement: float, where: object) -> None:
        """Refuse a precision that is not worth it on this machine.

        Raises:
            ParityError: it changes more labels than that.
            ExportError: it is no faster than float32, or does not run here at all.
        """
        if not self.disagreement <= max_disagreement:  # NaN fails too
            raise ParityError(
                where=where,
                found=f"{100 * self.disagreement:.2f} % of {self.images} images with another best"
                f" class in {self.precision} than in fp32",
                expected=f"at most {100 * max_disagreement:g} %",
                next_step="choose a higher precision, raise `max_disagreement`, or add `force`;"
                " nothing was written",
            )
        elsewhere = "add `force` if the model is meant for another machine; nothing was written"
        if self.images_per_s is None:
            raise ExportError(
                where=where,
                found=f"no operators for {self.precision} in ONNX Runtime on {self.device}, so its"
                " speed is unknown",
                expected="a precision that was measured",
                next_step=elsewhere,
            )
        if not self.images_per_s > self.fp32_images_per_s:
            raise ExportError(
                where=where,
                found=f"{self.images_per_s:.0f} images/s in {self.precision} and"
                f" {self.fp32_images_per_s:.0f} in fp32 on {self.device}",
                expected="a precision that is faster",
                next_step=elsewhere,
            )


def check_precision(precision: str, calibration: bool) -> None:
    """Refuse an unknown precision, and calibration for one that needs none.

    Raises:
        UsageError: see above.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            where="precision",
            found=repr(precision),
            expected=", ".join(PRECISIONS),
            next_step="choose one of these",
        )
    if calibration and precision != "int8":
        raise UsageError(
            where="calibration",
            found=f"precision {precision}",
            expected="precision int8, the one that is calibrated",
            next_step="leave `calibration` out, or choose int8",
        )


def lower_precision(
    tower: onnx.ModelProto,
    precision: str,
    calibration: NDArray[np.uint8] | None = None,
    *,
    symmetric: bool = False,
) -> onnx.ModelProto:
    """The tower in this precision; float32 is the tower itself.

    Args:
        calibration: for int8, uint8 [n, height, width, 3].
        symmetric: for int8, see `to_int8`.
    """
    if precision == "fp32":
        return tower
    if precision == "int8":
        if calibration is None:
            raise AssertionError("int8 takes calibration images")
        return to_int8(tower, calibration, symmetric=symmetric)
    return to_half(tower, precision)


def to_runnable(model: onnx.ModelProto, precision: str) -> bytes:
    """A graph of the same numbers that ONNX Runtime runs on a CPU."""
    runs = emulate_bfloat16(model) if precision == "bf16" else model
    serialised: bytes = runs.SerializeToString()
    return serialised


def compare_with_float32(
    reference: onnx.ModelProto,
    model: onnx.ModelProto,
    precision: str,
    images: NDArray[np.uint8],
) -> PrecisionReport:
    """Run both graphs on the same images, in turns.

    Args:
        reference, model: whole graphs, with their heads.
        images: uint8 [n, height, width, 3], at least one.
    """
    onnxruntime = import_onnxruntime()
    device = "cuda" if PROVIDERS["cuda"] in onnxruntime.get_available_providers() else "cpu"
    serialised, known = model.SerializeToString(), reference.SerializeToString()
    expected = open_session(onnxruntime, known, device, "the fp32 graph")
    try:
        measured: Any = open_session(onnxruntime, serialised, device, f"the {precision} graph")
    except ModelFileError:  # no kernel of such types on this device
        measured = None
    found = measured or open_session(
        onnxruntime, to_runnable(model, precision), device, "emulation"
    )
    logits, features = _run(found, images)
    known_logits, known_features = _run(expected, images)
    sessions = [expected] if measured is None else [expected, measured]
    speeds = _time_in_turns(sessions, np.resize(images, (_BATCH, *images.shape[1:])))
    return PrecisionReport(
        precision=precision,
        images=len(images),
        disagreement=float((logits.argmax(-1) != known_logits.argmax(-1)).mean()),
        feature_difference=float(np.abs(_unit(features) - _unit(known_features)).max()),
        bytes=len(serialised),
        fp32_bytes=len(known),
        device=device,
        images_per_s=speeds[1] if len(speeds) > 1 else None,
        fp32_images_per_s=speeds[0],
    )


def _run(session: Any, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    parts = [
        session.run(["logits", "features"], {"images": images[i : i + _BATCH]})
        for i in range(0, len(images), _BATCH)
    ]
    logits, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return logits, features


def _unit(features: NDArray[Any]) -> NDArray[Any]:
    unit: NDArray[Any] = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return unit


def _time_in_turns(sessions: list[Any], batch: NDArray[np.uint8]) -> list[float]:
    """Images per second of each, the best of several turns: other work disturbs both alike."""
    best = [float("inf")] * len(sessions)
    for _ in range(_TURNS):
        for i, session in enumerate(sessions):
            started = time.perf_counter()
            session.run(["logits"], {"images": batch})
            best[i] = min(best[i], time.perf_counter() - started)
    return [len(batch) / seconds for seconds in best]
