#!/usr/bin/env bash
# Format, lint, types, import contracts, tests, documents; in an environment that has the dev extra.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d .venv ] && PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE  # what is imported is compiled once
ruff format --check .
ruff check .
lint-imports --no-cache
# Types and the pages of the documents take one core a minute, beside the tests.
types=$(mktemp)
set -m  # a process group of its own, so that its processes end with it
{
  basedpyright --level error
  if python -c 'import mkdocs' 2>/dev/null; then NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet; fi
} >"$types" 2>&1 &
checker=$!
set +m
trap 'kill -- "-$checker" 2>/dev/null || true; rm -f "$types"' EXIT
failed=0
pytest -n 2 --durations=10 || failed=$?
[ $failed != 2 ] || exit 2  # interrupted
wait "$checker" || { cat "$types"; exit 1; }
cat "$types"
exit $failed
