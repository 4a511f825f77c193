#!/usr/bin/env bash
# Runs lint, type checks and tests, two files of tests at a time, the slow ones with -m slow; the last line is
# pytest's. Arguments are passed to pytest.
. "$(dirname "$0")/setup.sh" dev,scenes,pretrained,serve,docs
. launch/chromium.sh
set -e
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --pythonpath .venv/bin/python
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
