#!/usr/bin/env bash
# Tests and figures that need an NVIDIA GPU: run it on a machine that has one.
#
#   bash benchmarks/gpu.sh                     makes .venv-gpu from a package index
#   bash benchmarks/gpu.sh PYTHON              uses that Python as it is
#   bash benchmarks/gpu.sh --offline SITE      no package index: this machine's python3, with the
#                                              packages of the folder SITE before its own
#
# PHOTOS=ROOT adds files to labels; SECONDS_LEFT=450 is the time after which no row is begun.
# Rows that benchmarks/results has of this card are not measured again: a second run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nvidia-smi >/dev/null; then
  echo "nvidia-smi not found: this needs a machine with an NVIDIA GPU and its driver" >&2
  exit 9
fi
python=${1:-}
if [ "$python" = --offline ]; then
  site=${2:?"--offline needs the folder with the packages: --offline SITE"}
  python=python3
  export PYTHONPATH="$site:$PWD:$PWD/export:$PWD/runtime"
elif [ -z "$python" ]; then
  python3 -m venv .venv-gpu
  python=.venv-gpu/bin/python
  "$python" -m pip install --quiet -e './runtime[gpu,rtx]' -e '.[gpu]' pytest
fi
export ORT_DISABLE_TELEMETRY=1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
failed=0
timeout 150 "$python" -m pytest -m gpu tests/gpu -q --tb=short --show-capture=no -p no:cacheprovider || failed=$?
"$python" benchmarks/gpu.py --seconds "${SECONDS_LEFT:-450}" ${PHOTOS:+--photos "$PHOTOS"}
exit "$failed"
