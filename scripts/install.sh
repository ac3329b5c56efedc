#!/usr/bin/env bash
# Make or reuse .venv and install this package with one extra. Usage: install.sh EXTRA
# Nothing is installed again while pyproject.toml and constraints.txt stay the same.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=$1
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "autoprune needs Python 3.11 or newer; $python is $("$python" --version). Set PYTHON=..." >&2
  exit 2
}
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
stamp=.venv/.installed-$extra
if ! cmp -s <(cat pyproject.toml constraints.txt; pwd) "$stamp"; then
  # Python compiles what is imported, where it may; compiling all of 2 GB takes as long as installing it.
  compile=$([ -n "${PYTHONDONTWRITEBYTECODE:-}" ] && echo --compile || echo --no-compile)
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$compile" -e ".[$extra]" -c constraints.txt
  (cat pyproject.toml constraints.txt; pwd) >"$stamp"
fi
