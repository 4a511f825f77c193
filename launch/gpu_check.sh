#!/usr/bin/env bash
# Checks the kernels, measures and trains on a machine with a GPU, JAX and Flax, and no network.
#
#   bash launch/gpu_check.sh --carry WHEELS   # with a network, same Python: what else is needed
#   bash launch/gpu_check.sh [WHEELS]         # on the GPU machine; PYTHON names its interpreter
#
# Installs from WHEELS, into build/gpu_check, only what that Python lacks. Results go to
# bench/results/gpu-<device>.json. Without a GPU it runs to its end and says what it left out.
set -e
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"

if [ "$1" = --carry ]; then
  [ -n "$2" ] || { echo "error: --carry needs a folder" >&2; exit 2; }
  mkdir -p "$2"
  grep -Ev '^(#|jax==|jaxlib==|lpips)' launch/constraints.txt >"$2/needed.txt"
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$2" --requirement "$2/needed.txt"
  echo "$(ls "$2"/* | wc -l) files in $2"
  exit
fi

if [ -n "$1" ]; then
  [ -f "$1/needed.txt" ] || { echo "error: $1/needed.txt is missing; use --carry first" >&2; exit 2; }
  missing="$("$python" - "$1/needed.txt" <<'END'
import sys
from importlib import metadata

for line in open(sys.argv[1]):
    name = line.strip().split("==")[0]
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        print(line.strip())
END
)"
  rm -rf build/gpu_check
  if [ -n "$missing" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --find-links "$1" \
      --target build/gpu_check $missing
  fi
fi
PYTHONPATH=.:build/gpu_check exec "$python" launch/gpu_check.py
