#!/usr/bin/env bash
# Trains on several hosts. Run on each host, with its own number:
#
#   bash launch/multihost.sh COORDINATOR PROCESSES PROCESS --config=configs/coco_dch.py --workdir=DIR
#
# COORDINATOR is HOST:PORT of process 0, with a port that the other hosts can reach; PROCESSES is the
# number of processes; PROCESS is the number of this one, from 0. DIR must be on storage that all hosts
# share. To try it on one host, run two processes with four virtual devices each:
#
#   export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4
#   bash launch/multihost.sh localhost:12345 2 0 --config=configs/scenes_dch.py --workdir=runs/two &
#   bash launch/multihost.sh localhost:12345 2 1 --config=configs/scenes_dch.py --workdir=runs/two
#
# A run can be resumed with another number of processes or devices, including one.
set -e
cd "$(dirname "$0")/.."
if [ $# -lt 4 ]; then
  echo "error: expected COORDINATOR PROCESSES PROCESS --config=FILE ..., got: $*" >&2
  exit 2
fi
coordinator=$1 processes=$2 process=$3
shift 3
exec .venv/bin/python -m mch_jax.main \
  --coordinator="$coordinator" --processes="$processes" --process="$process" "$@"
