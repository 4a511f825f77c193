#!/usr/bin/env bash
# Checks correctness, measures speed and trains on a GPU machine that has JAX and Flax but no network.
#
#   bash launch/gpu_check.sh --carry WHEELS   # with a network and the same Python: collect packages
#   bash launch/gpu_check.sh [WHEELS]         # on the GPU machine; PYTHON names its interpreter
#
# Packages that this Python lacks are installed from WHEELS into build/gpu_check. Results are written to
# bench/results/gpu-<device>.json. Without a GPU the script still finishes and lists what it left out.
set -e
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"

if [ "$1" = --carry ]; then
  [ -n "$2" ] || { echo "error: --carry needs a directory" >&2; exit 2; }
  mkdir -p "$2"
  grep -Eo '^[a-z0-9.-]+==[^ ]+' launch/constraints.txt | grep -Ev '^(jax==|jaxlib==|lpips|ray==|uvloop==)' \
    >"$2/needed.txt"
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
