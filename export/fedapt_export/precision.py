"""Precisions of the image tower, and their cost and gain on this machine.

The head stays in float32 in all of them: its three products are small, and they decide the label.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fedapt.core.errors import ExportError, ParityError, UsageError
from fedapt.onnx.weights import open_model
from fedapt_export.half import emulate_bfloat16, store_in_half, to_half
from fedapt_export.int8 import to_int8
from fedapt_export.model_file import count_file_bytes
from fedapt_export.outputs import BATCH, run_in_batches, unit_difference
from fedapt_runtime.backends.ort import PROVIDERS, import_onnxruntime
from fedapt_runtime.errors import ModelFileError

STORED = "fp16-weights"  # float32 with weights in float16, for a smaller file
PRECISIONS = ("fp32", "fp16", "bf16", "int8", STORED)
# of unit features, torch in float32 against the graph; int8 is checked by its labels only
MAX_FEATURE_DIFFERENCE = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-2, "int8": 2.0, STORED: 2e-3}
# share of images whose label may change against float32
MAX_DISAGREEMENT = {"fp32": 0.0, "fp16": 0.001, "bf16": 0.01, "int8": 0.01, STORED: 0.001}
_TURNS, _SECONDS = 5, 20.0  # after which no further turn begins


@dataclass(frozen=True)
class PrecisionReport:
    """Comparison of a lower precision with float32, on the same images and machine.

    Attributes:
        precision: precision of the tower.
        images: compared.
        disagreement: share of images with another label.
        feature_difference: largest absolute difference of unit features.
        bytes, fp32_bytes: sizes of the whole model.
        device: device on which speed was measured.
        images_per_s, fp32_images_per_s: at batches of 32, the maximum of up to five turns; None if
            ONNX Runtime has no such operators on this device.
        reduced_range: int8 weights in 7 bits, see `int8.to_int8`.
        by_domain: accuracy in fp32 and in this precision, and images, by domain; empty on noise.
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
    reduced_range: bool = False
    by_domain: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def check(self, max_disagreement: float, where: object) -> None:
        """Refuse a precision without benefit on this machine.

        Raises:
            ParityError: it changes more labels than `max_disagreement`.
            ExportError: it is no faster than float32, or does not run here at all.
        """
        if not self.disagreement <= max_disagreement:  # NaN fails too
            raise ParityError(
                where=where,
                found=f"{100 * self.disagreement:.2f} % of {self.images} images with another label"
                f" in {self.precision} than in fp32",
                expected=f"at most {100 * max_disagreement:g} %",
                next_step="choose a higher precision, raise `max_disagreement`, or add `force`;"
                " nothing was written",
            )
        if self.precision == STORED:  # it is for the size of the file, not for speed
            return
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


def check_precision(precision: str, calibration: bool, reduced_range: bool = False) -> None:
    """Refuse an unknown precision, and options of int8 for another.

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
    if reduced_range and precision != "int8":
        raise UsageError(
            where="reduced_range",
            found=f"precision {precision}",
            expected="precision int8, whose weights it keeps in 7 bits",
            next_step="leave `reduced_range` out, or choose int8",
        )
    if calibration and precision != "int8":
        raise UsageError(
            where="calibration",
            found=f"precision {precision}",
            expected="precision int8, the one that is calibrated",
            next_step="leave `calibration` out, or choose int8",
        )


def compare_by_domain(
    truth: Sequence[tuple[str, int]], known: NDArray[Any], found: NDArray[Any]
) -> dict[str, dict[str, float]]:
    """Accuracy of two graphs by domain.

    Args:
        truth: domain and label of every image.
        known, found: logits [n, C] in float32, and of the graph in a lower precision.
    """
    report: dict[str, dict[str, float]] = {}
    for domain in dict.fromkeys(name for name, _ in truth):
        rows = [i for i, (name, _) in enumerate(truth) if name == domain]
        labels = np.array([truth[i][1] for i in rows])
        report[domain] = {
            "images": len(rows),
            "fp32": float((known[rows].argmax(-1) == labels).mean()),
            "accuracy": float((found[rows].argmax(-1) == labels).mean()),
        }
    return report


def lower_precision(
    tower: onnx.ModelProto,
    precision: str,
    calibration: NDArray[np.uint8] | None = None,
    *,
    symmetric: bool = False,
    reduced_range: bool = False,
) -> onnx.ModelProto:
    """The tower in this precision; for float32 the tower itself.

    Args:
        calibration: for int8, uint8 [n, height, width, 3].
        symmetric, reduced_range: for int8, see `to_int8`.
    """
    if precision == "fp32":
        return tower
    if precision == "int8":
        if calibration is None:
            raise AssertionError("int8 takes calibration images")
        return to_int8(tower, calibration, symmetric=symmetric, reduced_range=reduced_range)
    return store_in_half(tower) if precision == STORED else to_half(tower, precision)


def to_runnable(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A graph of the same numbers that ONNX Runtime runs on a CPU."""
    return emulate_bfloat16(model) if precision == "bf16" else model


def compare_with_float32(
    reference: onnx.ModelProto,
    model: onnx.ModelProto,
    precision: str,
    images: NDArray[np.uint8],
    truth: Sequence[tuple[str, int]] = (),
    *,
    reduced_range: bool = False,
) -> PrecisionReport:
    """Run both graphs on the same images, in turns.

    Args:
        reference, model: whole graphs, with their heads.
        images: uint8 [n, height, width, 3], at least one.
        truth: domain and label of each; empty if they are unknown.
        reduced_range: whether the graph's weights have 7 bits, for the report.
    """
    onnxruntime = import_onnxruntime()
    device = "cuda" if PROVIDERS["cuda"] in onnxruntime.get_available_providers() else "cpu"
    try:  # first: ONNX Runtime takes more memory while it opens a lower precision than afterwards
        measured: Any = open_model(model, device, f"the {precision} graph")
    except ModelFileError:  # no kernel of such types on this device
        measured = None
    found = measured or open_model(to_runnable(model, precision), device, "emulation")
    expected = open_model(reference, device, "the fp32 graph")
    logits, features = run_in_batches(found, images)
    known_logits, known_features = run_in_batches(expected, images)
    sessions = [expected] if measured is None else [expected, measured]
    speeds = _time_in_turns(sessions, np.resize(images, (BATCH, *images.shape[1:])))
    return PrecisionReport(
        precision=precision,
        images=len(images),
        disagreement=float((logits.argmax(-1) != known_logits.argmax(-1)).mean()),
        feature_difference=unit_difference(features, known_features),
        bytes=count_file_bytes(model),
        fp32_bytes=count_file_bytes(reference),
        device=device,
        images_per_s=speeds[1] if len(speeds) > 1 else None,
        fp32_images_per_s=speeds[0],
        reduced_range=reduced_range,
        by_domain=compare_by_domain(truth, known_logits, logits),
    )


def _time_in_turns(sessions: list[Any], batch: NDArray[np.uint8]) -> list[float]:
    """Images per second of each, the maximum of several turns; other load affects both alike.

    A large tower gets fewer turns, at least one.
    """
    best, begun = [float("inf")] * len(sessions), time.perf_counter()
    for _ in range(_TURNS):
        if time.perf_counter() - begun > _SECONDS:
            break
        for i, session in enumerate(sessions):
            started = time.perf_counter()
            session.run(["logits"], {"images": batch})
            best[i] = min(best[i], time.perf_counter() - started)
    return [len(batch) / seconds for seconds in best]
