#!/usr/bin/env bash
# Runs the tests that need neither torch nor a server on a second Python, 3.12 or newer.
#
# The interpreter is SECOND_PYTHON, or else python3.13 or python3.12, whichever exists and is not the
# version in .venv. Its environment is .venv-second. Without a second Python the script does nothing.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

own="$(.venv/bin/python -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null)"
for python in ${SECOND_PYTHON:-python3.13 python3.12}; do
  version="$("$python" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null)"
  [ -n "$version" ] && [ "$version" != "$own" ] && break
  python=""
done
if [ -z "$python" ]; then
  echo "No second Python: the PATH has no 3.12 or newer other than that of .venv"
  exit 0
fi
set -e
[ -x .venv-second/bin/python ] || "$python" -m venv .venv-second
PYTHONWARNINGS=ignore .venv-second/bin/python -m pip install --quiet --editable '.[scenes,tensorboard]' \
  beartype hypothesis pytest
exec .venv-second/bin/python -m pytest \
  tests/{codes,files_codes_file,metrics,pairs,objective,regions,validation,termination,logs,loop,search}_test.py \
  "$@"
