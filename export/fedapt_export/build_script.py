"""A script that builds a TensorRT engine on another machine, which has the GPU.

`trtexec` builds the engine with the requested profile. `fedapt-runtime check` then compares the
engine with the ONNX file and writes its description. Neither needs torch or fedapt.

Source: TensorRT documentation, "trtexec" (Command-Line Programs).
"""

from __future__ import annotations

import shlex
from pathlib import Path

from fedapt import __version__
from fedapt.core.files import hash_file, write_text
from fedapt_export.engine import EngineSettings
from fedapt_runtime import Manifest

NAME = "build_engine.sh"
_TEMPLATE = r"""#!/usr/bin/env bash
# Builds @ENGINE@ from @MODEL@ on the GPU that will run it (the first of
# CUDA_VISIBLE_DEVICES), and checks it. Written by fedapt @VERSION@.
#
#     bash @NAME@ [more options of trtexec]
#
# Requirements: trtexec of TensorRT 10 or 11 (its ONNX parser reads opset @OPSET@); for the check
#     pip install 'fedapt-runtime[cpu,tensorrt]' tensorrt==VERSION_OF_TRTEXEC
set -euo pipefail
cd "$(dirname "$0")"
model=@MODEL_QUOTED@
engine=@ENGINE_QUOTED@

fail() { echo "error: $1" >&2; exit "$2"; }

command -v trtexec >/dev/null ||
  fail "trtexec not found: install TensorRT 10 or 11, or add it to PATH" 9
sha256sum --check --quiet <<'END' ||
@HASHES@
END
  fail "$model is not the model that this script was written for" 8
options=$(trtexec --help 2>&1 || true)
version=$(sed -n 's/.*\[TensorRT v\([0-9]*\)\].*/\1/p' <<<"$options" | head -n 1)
[ "${version:-100000}" -ge 100000 ] || fail "TensorRT $version; 10 (100000) or newer is needed" 9
# the graph's types set the precision; TensorRT 11 has no other mode and may lack the option
typed=()
grep -q -- --stronglyTyped <<<"$options" && typed=(--stronglyTyped)

trtexec --onnx="$model" --saveEngine="$engine.part" "${typed[@]}" --noTF32 --skipInference \
  --minShapes=images:@MIN@ \
  --optShapes=images:@OPT@ \
  --maxShapes=images:@MAX@@OTHERS@ \
  "$@"
rm -f "$engine.json"  # of an older engine
mv "$engine.part" "$engine"

command -v fedapt-runtime >/dev/null ||
  fail "$engine is built but not verified, and the runtime refuses it without $engine.json: \
install fedapt-runtime, then run fedapt-runtime check $engine --against $model" 9
fedapt-runtime check "$engine" --against "$model"
"""


def write_build_script(model: Path, manifest: Manifest, settings: EngineSettings) -> Path:
    """Write build_engine.sh beside a model.

    Args:
        model: the .onnx file; the engine gets the same name with the suffix .engine.
        manifest: manifest of the model.
        settings: batch sizes, timing cache and refit; the flavour is always `tensorrt`.

    Returns:
        The script's path.

    Raises:
        FileError: the folder cannot be written.
    """
    height, width = manifest.preprocessing.size
    others = ["--refit"] if settings.refit else []
    if settings.timing_cache is not None:
        others.append(f"--timingCacheFile={shlex.quote(settings.timing_cache.name)}")
    engine = model.with_suffix(".engine").name
    hashes = {model.name: hash_file(model)}
    if manifest.weights is not None:
        hashes[manifest.weights["file"]] = manifest.weights["sha256"]
    values = {
        "MODEL": model.name,
        "ENGINE": engine,
        "MODEL_QUOTED": shlex.quote(model.name),
        "ENGINE_QUOTED": shlex.quote(engine),
        "NAME": NAME,
        "VERSION": __version__,
        "OPSET": str(manifest.opset),
        "HASHES": "\n".join(f"{sha256}  {name}" for name, sha256 in hashes.items()),
        "MIN": f"{settings.min_batch}x{height}x{width}x3",
        "OPT": f"{settings.opt_batch}x{height}x{width}x3",
        "MAX": f"{settings.max_batch}x{height}x{width}x3",
        "OTHERS": "".join(f" \\\n  {option}" for option in others),
    }
    text = _TEMPLATE
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    script = model.with_name(NAME)
    write_text(script, text)
    return script
