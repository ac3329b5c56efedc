#!/usr/bin/env bash
# Format, lint, types, import contracts, tests, documents; in an environment that has the dev extra.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d .venv ] && PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE  # the processes that tests start need not compile everything again
ruff format --check .
ruff check .
basedpyright --level error
lint-imports --no-cache
pytest -n 2 --durations=10
if python -c 'import mkdocs' 2>/dev/null; then NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet; fi
