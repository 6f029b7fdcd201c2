"""model.onnx or an engine -> a model repository of NVIDIA's Triton Inference Server.

    DIR/<name>/config.pbtxt      inputs, outputs, dynamic batching, warm-up
    DIR/<name>/classes.txt       labels of `logits`; domains.txt of `domain_weights`
    DIR/<name>/1/model.onnx      or model.plan; weights of a model above 2 GB beside it

Source: Triton documentation, "Model configuration"; the schema is `model_config.proto`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fedapt.core.files import claim_folder, replace_file, write_text
from fedapt_export.engine import EngineSettings
from fedapt_runtime import Manifest

_QUEUE_DELAY_US = 1000  # maximum wait of a request for others in its batch

_CONFIG = """\
name: "{name}"
backend: "{backend}"
max_batch_size: {max_batch}
input [
  {{ name: "images" data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] }}
]
output [
  {{
    name: "logits"
    data_type: TYPE_FP32
    dims: [ {classes} ]
    label_filename: "classes.txt"
  }},
  {{
    name: "domain_weights"
    data_type: TYPE_FP32
    dims: [ {domains} ]
    label_filename: "domains.txt"
  }}
]
dynamic_batching {{
  preferred_batch_size: [ {opt_batch} ]
  max_queue_delay_microseconds: {delay}
}}
model_warmup [
  {{
    name: "zeros"
    batch_size: {opt_batch}
    inputs {{
      key: "images"
      value: {{ data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] zero_data: true }}
    }}
  }}
]
"""


def write_repository(
    model: Path, folder: Path, manifest: Manifest, settings: EngineSettings
) -> Path:
    """Write or update the model in a repository; the configuration is written last.

    Args:
        model: an .onnx file, or an .engine file of TensorRT; Triton cannot run TensorRT-RTX.
        folder: the repository; the model's folder in it gets the name of the file.
        manifest: manifest of the model.
        settings: batch sizes.

    Returns:
        The model's folder.

    Raises:
        FileError: another job writes it, the folder cannot be written, or the disk is full.
    """
    target = folder / model.stem
    with claim_folder(target):
        _write(model, target, manifest, settings)
    return target


def _write(model: Path, target: Path, manifest: Manifest, settings: EngineSettings) -> None:
    is_engine = model.suffix == ".engine"
    if manifest.weights is not None and not is_engine:
        weights: str = manifest.weights["file"]
        with replace_file(target / "1" / weights) as temporary:
            shutil.copyfile(model.with_name(weights), temporary)
    with replace_file(target / "1" / ("model.plan" if is_engine else "model.onnx")) as temporary:
        shutil.copyfile(model, temporary)
    for name, labels in (("classes.txt", manifest.classes), ("domains.txt", manifest.domains)):
        # one label per line: a line break in a name would shift all later labels
        lines = [" ".join(label.splitlines()) for label in labels]
        write_text(target / name, "\n".join(lines) + "\n")
    height, width = manifest.preprocessing.size
    config = _CONFIG.format(
        name=target.name.replace("\\", "\\\\").replace('"', '\\"'),
        backend="tensorrt" if is_engine else "onnxruntime",
        max_batch=settings.max_batch,
        opt_batch=settings.opt_batch,
        height=height,
        width=width,
        classes=len(manifest.classes),
        domains=len(manifest.domains),
        delay=_QUEUE_DELAY_US,
    )
    write_text(target / "config.pbtxt", config)
