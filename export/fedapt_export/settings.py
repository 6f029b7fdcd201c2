"""Settings of an export, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedapt.core.errors import UsageError
from fedapt_export.precision import check_precision
from fedapt_runtime.manifest import ONNX, ONNXRUNTIME

MIXINGS = ("exact", "hard")
OPERATORS = (ONNX, ONNXRUNTIME)
_FUSABLE = ("fp32", "fp16")  # precisions that ONNX Runtime's fused operators have


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export.

    Attributes:
        data: images for the reports. The default is the images of the run; without them, noise.
        parity_images: number of compared test images; 0 means all.
        min_agreement: share of images whose label must survive the mixing of text banks.
        head_only: write the head as a .safetensors file; the image tower runs only for images
            without a cached feature.
        mixing: mixing of the text banks, `exact` or `hard`.
        precision: precision of the image tower, one of `precision.PRECISIONS`.
        calibration: images that set the scales of int8, by default the run's training images.
        calibration_images: number of calibration images; 0 means all.
        symmetric: symmetric int8 activations, which TensorRT requires; see `int8.to_int8`.
        reduced_range: int8 weights in 7 bits, for x86 without VNNI; see `int8.to_int8`.
        operators: operators of the image tower, one of `OPERATORS`; `onnxruntime` fuses attention
            and LayerNorm, see `fused_operators`.
        max_disagreement: maximum share of images whose label differs from float32; None means
            `precision.MAX_DISAGREEMENT`.
        calibrate: fit the logit scale to the run's validation images; no label changes.
        client: the client whose model is exported, for methods with one model per client.
        force: write a lower precision that disagrees, is slower, or does not run on this machine.
    """

    data: Path | None = None
    parity_images: int = 128
    min_agreement: float = 0.98
    head_only: bool = False
    mixing: str = "exact"
    precision: str = "fp32"
    calibration: Path | None = None
    calibration_images: int = 128
    symmetric: bool = False
    reduced_range: bool = False
    operators: str = ONNX
    max_disagreement: float | None = None
    calibrate: bool = False
    client: str = ""
    force: bool = False

    def check_out(self, out: Path) -> None:
        """Refuse the suffix of another kind of file.

        Raises:
            UsageError: the suffix does not fit the output.
        """
        of_head = ".safetensors with `head_only`"
        if out.suffix != (".safetensors" if self.head_only else ".onnx"):
            raise UsageError(
                where=f"out {out}",
                found=f"the suffix {out.suffix!r}",
                expected=of_head if self.head_only else f".onnx, or {of_head}",
                next_step="rename the output",
            )

    def check(self) -> None:
        """Refuse settings that exclude each other.

        Raises:
            UsageError: see above.
        """
        check_precision(self.precision, self.calibration is not None, self.reduced_range)
        for where, chosen, known in (
            ("mixing", self.mixing, MIXINGS),
            ("operators", self.operators, OPERATORS),
        ):
            if chosen not in known:
                raise UsageError(
                    where=where,
                    found=repr(chosen),
                    expected=" or ".join(known),
                    next_step="choose one of these",
                )
        if self.operators == ONNXRUNTIME and (self.head_only or self.precision not in _FUSABLE):
            other = "`head_only`" if self.head_only else f"precision {self.precision}"
            raise UsageError(
                where="operators",
                found=f"{ONNXRUNTIME} with {other}",
                expected=f"an image tower in {' or '.join(_FUSABLE)}",
                next_step="leave one out",
            )
        if self.head_only and self.precision != "fp32":
            raise UsageError(
                where="head_only and precision",
                found=f"both, with {self.precision}",
                expected="one of them: the head is float32 in every model",
                next_step="leave one out",
            )
