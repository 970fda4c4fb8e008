#!/usr/bin/env bash
# Set up if need be, then bring the results up to date (python -m repro), or run the tests:
#   ./run_all.sh [--profile NAME] [--only NN | --from NN | --full] [--force] [--list]
#                [--device auto|cpu|cuda] [--data DIR]
#   ./run_all.sh fetch [NAMES...] [--list]           download and check what the real profiles read
#   ./run_all.sh recommend [NAMES...] [--csv FILE] [--profile NAME]    for what you like yourself
#   ./run_all.sh test [pytest options]
#   ./run_all.sh benchmarks [NAMES...] [--small]     beside other libraries, in an environment apart
set -euo pipefail

script=${BASH_SOURCE[0]}
while [ -L "$script" ]; do # reached by a link: readlink -f is not everywhere
  link=$(readlink "$script")
  case $link in /*) script=$link ;; *) script=$(dirname "$script")/$link ;; esac
done
# The caller's folder stays the current one, so that --data ../music means what it says.
root=$(cd "$(dirname "$script")" && pwd -P)

find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3 python; do
    # Run it: a version manager's stub may exist for a Python that does not.
    if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "run_all.sh needs Python 3.11 or newer with its venv module; none was found." >&2
  echo "Install one (https://www.python.org), or use conda: see environment.yml." >&2
  return 1
}

suitable() { # does this Python have the package from this folder, and all that it requires?
  "$1" -P - "$root" 2>/dev/null <<'PYTHON'
import re, sys
from importlib.metadata import requires, version
from pathlib import Path

import repro

assert Path(repro.__file__).parent.parent.samefile(sys.argv[1])
for requirement in requires("repro"):
    version(re.match(r"[\w.-]+", requirement).group())
PYTHON
}

install() { # what the lock $2 pins into $1; the marker is written last: an interruption shows
  local marker=$1/installed wanted python
  wanted="$root $(cat "$2" "$root/pyproject.toml" | cksum)"
  if [ "$(cat "$marker" 2>/dev/null)" = "$wanted" ] && "$1/bin/python" -c '' 2>/dev/null; then
    return
  fi
  if [ ! -e "$marker" ] || ! "$1/bin/python" -c '' 2>/dev/null; then
    python=$(find_python)
    echo "Creating $1 with $("$python" --version)"
    "$python" -m venv --clear "$1"
  fi
  rm -f "$marker"
  echo "Installing the pinned packages into $1 (a few minutes, the first time)"
  if [ "$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    # The CPU build of torch is a tenth of the size. Asked for alone and without patience: where
    # that index cannot be reached, pip goes on with the indexes it knows.
    pip "$1" --no-deps --retries 0 --timeout 15 \
      --extra-index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' "$2")"
  fi
  pip "$1" -r "$2"
  pip "$1" --no-deps --no-build-isolation --editable "$root"
  echo "$wanted" >"$marker"
}

pip() { "$1/bin/python" -m pip -qq --disable-pip-version-check install "${@:2}"; }

if [ "${1:-}" = benchmarks ]; then
  shift
  cd "$root"
  install .venv-benchmarks benchmarks/requirements.lock
  exec .venv-benchmarks/bin/python -u -m benchmarks "$@"
fi

python=""
active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [ -n "$active" ]; then
  if suitable "$active/bin/python"; then
    python=$active/bin/python
  else
    echo "The active environment ($active) lacks what is needed: using .venv instead"
  fi
fi
if [ -z "$python" ]; then
  install "$root/.venv" "$root/requirements.lock"
  python=$root/.venv/bin/python
fi

if [ "${1:-}" = test ]; then
  shift
  cd "$root"
  exec "$python" -m pytest "$@"
fi
exec "$python" -P -u -m repro "$@"
