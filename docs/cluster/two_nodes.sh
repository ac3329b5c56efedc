#!/usr/bin/env bash
# A head without CPUs for trials and one worker node, both on this host; then a search on them. Arguments: those of
# `autoprune search`. Ends what it started, and nothing else.
set -euo pipefail
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
RAY_AUTH_TOKEN_PATH=$(mktemp)
export RAY_AUTH_TOKEN_PATH
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"
started=()
finish() { kill "${started[@]}" 2>/dev/null || true; wait; rm -f "$RAY_AUTH_TOKEN_PATH"; }
trap finish EXIT
ray start --head --port=6399 --num-cpus=0 --include-dashboard=false --block >/dev/null &
started+=($!)
until ray health-check --address=127.0.0.1:6399 >/dev/null 2>&1; do sleep 1; done
ray start --address=127.0.0.1:6399 --num-cpus="${CPUS:-2}" --block >/dev/null &
started+=($!)
sleep 10
autoprune search --executor ray --ray-address 127.0.0.1:6399 "$@"
