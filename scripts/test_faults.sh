#!/usr/bin/env bash
# The fault tests that take minutes: Ray nodes, head and driver are killed for real, and a host is cut off (as root).
# Usage: test_faults.sh [PYTEST ARGUMENTS], or
#        test_faults.sh --kills N [--seed S] [--out FILE.csv]: N kills of a search at random moments (random_kills.py)
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d .venv ] && PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1
if [ "${1:-}" = --kills ]; then
  exec python scripts/random_kills.py "$@"
fi
exec pytest -m "slow or not slow" --durations=10 tests/study/test_faults.py tests/executors/test_ray_faults.py \
  tests/executors/test_ray_hosts.py tests/study/test_shared_storage.py tests/device/test_ssh_server.py "$@"
