#!/bin/sh
# Makes .venv and installs Verst and the extras that are named into it: scripts/environment.sh [EXTRA,EXTRA...]
#
# uv installs, several times as fast as pip; where uv cannot be had, or fails, pip does. Versions are those of
# constraints.txt. PYTHON=/path/to/python3.12 names an interpreter; without it one is looked for.
set -eu
cd "$(dirname "$0")/.."
extras=${1:-}
python=.venv/bin/python

# A command may be there and not run (pyenv's shims), and Debian splits venv and ensurepip off: each candidate
# proves itself.
works() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] < (3, 12))' >/dev/null 2>&1; }

first_that_works() {
  for candidate in "$@"; do
    if works "$candidate"; then echo "$candidate"; return 0; fi
  done
  return 1
}

python_of_uv() {
  command -v uv >/dev/null 2>&1 || return 1
  uv python find 3.12 2>/dev/null || { uv python install 3.12 >&2 && uv python find 3.12; }
}

# Python 3.12, or a newer one if there is no 3.12.
find_python() {
  if [ -n "${PYTHON:-}" ]; then
    works "$PYTHON" && echo "$PYTHON"
    return
  fi
  first_that_works python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3 /usr/bin/python3.12 \
    /usr/local/bin/python3.12 /opt/python/3.12*/bin/python3 || python_of_uv ||
    first_that_works python3 /usr/bin/python3
}

explain_no_python() {
  cat >&2 <<'TEXT'
Verst needs Python 3.12 or newer with its venv module; none was found.
  Ubuntu 24.04:    sudo apt install python3.12-venv
  Debian 13:       sudo apt install python3-venv (it has 3.13)
  Debian 12:       has 3.11 only; use uv or pyenv
  anywhere, uv:    install uv (https://docs.astral.sh/uv/), then run make again: it fetches 3.12
  anywhere, pyenv: pyenv install 3.12, then run make again
  or name one:     make PYTHON=/path/to/python3.12 ...
TEXT
}

# uv reads neither pip's configuration nor its environment variables: a site's own indexes and certificates are
# handed on, and chosen from as pip does.
use_settings_of_pip() {
  index=${PIP_INDEX_URL:-$($python -m pip config get global.index-url 2>/dev/null || true)}
  [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
  more=${PIP_EXTRA_INDEX_URL:-$($python -m pip config get global.extra-index-url 2>/dev/null || true)}
  [ -z "$more" ] || export UV_INDEX="${UV_INDEX:-$more}" UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
  [ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"
}

find_uv() {
  if command -v uv 2>/dev/null; then return 0; fi
  if [ ! -x .venv/bin/uv ] && ! $python -m pip install --quiet --disable-pip-version-check uv >/dev/null 2>&1; then
    echo "pip cannot get uv here: pip installs everything itself" >&2
    return 1
  fi
  echo .venv/bin/uv
}

if ! $python -c 'import pip' >/dev/null 2>&1; then
  found=$(find_python) || { explain_no_python; exit 1; }
  echo "making .venv with $found"
  "$found" -m venv --clear .venv
fi

target=.${extras:+[$extras]}
echo "installing Verst${extras:+ with $extras}"
if uv=$(find_uv); then
  use_settings_of_pip
  if UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180} \
    "$uv" pip install --quiet --python $python -c constraints.txt -e "$target"; then
    # uv compiles nothing, and each module would be compiled by every process of the first run that imports it.
    [ -e .venv/compiled ] || { $python scripts/compile_imports.py && touch .venv/compiled; }
    exit 0
  fi
  echo "uv failed; trying pip" >&2
fi
exec $python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$target"
