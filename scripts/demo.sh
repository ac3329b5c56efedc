#!/usr/bin/env bash
# From a dense model to a verified Pareto front, on 5,000 real handwritten digits. Takes some minutes on two cores.
# Usage: demo.sh [RUN_DIR]; the same command resumes.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
bash scripts/install.sh demo
folder=${1:+$(realpath -m --relative-base="$PWD" "$here/$1")}
folder=${folder:-runs/demo}
.venv/bin/autoprune search --task mnist5k --budget 50% --budget 40% --trials 64 --run-dir "$folder"
echo
echo "Picked at 50 % of the dense latency:"
.venv/bin/autoprune pick "$folder" --max-latency 50%
.venv/bin/autoprune report "$folder"
