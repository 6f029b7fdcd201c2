#!/usr/bin/env bash
# Tests and figures that need an NVIDIA GPU: run it on a machine that has one.
#
#   bash benchmarks/gpu.sh [PYTHON]
#
# Without an argument it makes .venv-gpu, where onnxruntime-gpu stands in for onnxruntime (the two
# exclude each other). With one, it uses that Python as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nvidia-smi >/dev/null; then
  echo "no nvidia-smi: this needs a machine with an NVIDIA GPU" >&2
  exit 9
fi
python=${1:-}
if [ -z "$python" ]; then
  python3 -m venv .venv-gpu
  python=.venv-gpu/bin/python
  "$python" -m pip install --quiet -e './runtime[gpu,rtx]' -e '.' pytest
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$python" -m pytest -m gpu tests/gpu -q
"$python" benchmarks/gpu.py
