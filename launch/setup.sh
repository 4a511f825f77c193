# Sourced by other scripts: changes to the project's root and makes .venv with the extras in $1.
#
#   . "$(dirname "$0")/setup.sh" scenes,pretrained
#
# A second call reuses .venv. It is updated when setup.cfg or pyproject.toml has changed. With LOCKED=1, the
# packages have exactly the versions of launch/constraints.txt, and their files the hashes there. It holds the
# extras scenes, pretrained, serve and cluster; all of them are installed.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

if [ -n "$LOCKED" ]; then
  case ",$1," in
  *,dev,* | *,bench,* | *,docs,* | *,gpu,* | *,tensorboard,* | *,onnx,*)
    echo "error: LOCKED=1 does not hold the extras $1; expected scenes, pretrained, serve or cluster" >&2
    exit 2
    ;;
  esac
fi

if [ ! -x .venv/bin/python ]; then
  for python in python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      break
    fi
    python=""
  done
  if [ -z "$python" ]; then
    echo "error: no Python 3.11 to 3.13 found; install one and run the script again" >&2
    exit 2
  fi
  echo "Setting up .venv with $("$python" --version)"
  "$python" -m venv .venv || { rm -rf .venv; exit 1; }
  .venv/bin/python -m pip install --quiet --upgrade pip || exit 1
fi

wanted="$(cat setup.cfg pyproject.toml | cksum)"
stamp=".venv/installed-$1"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "Installing mch_jax[$1] into .venv; this takes a few minutes the first time"
  if [ -n "$LOCKED" ]; then
    pip="env PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --no-deps"
    $pip --require-hashes --requirement launch/build.txt || exit 1
    $pip --require-hashes --no-build-isolation --requirement launch/constraints.txt || exit 1
    $pip --no-build-isolation --editable . || exit 1
  else
    PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --editable ".[$1]" || exit 1
  fi
  echo "$wanted" >"$stamp"
fi

# glibc puts large arrays in huge pages: training on a CPU is up to a quarter faster.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
