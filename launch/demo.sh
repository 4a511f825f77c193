#!/usr/bin/env bash
# Runs the main job on the built-in data set; prints the table of results and the path of the report.
. "$(dirname "$0")/setup.sh" scenes,pretrained
exec .venv/bin/python -m mch_jax.main --config=configs/scenes_dch.py --workdir=runs/demo "$@"
