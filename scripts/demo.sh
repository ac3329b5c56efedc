#!/usr/bin/env bash
# From a trained model to one several times as fast, on 5,000 real handwritten digits; some minutes on two cores.
# Usage: demo.sh [RUN_DIR]; the same command resumes.
#
# The dense model (98.7 % on test data) was trained before, in 2 minutes: scripts/demo/resnet8.safetensors is
# dense.safetensors of `autoprune search --task mnist5k`. Leave out --dense and it is trained again.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
bash scripts/install.sh demo
folder=${1:+$(realpath -m --relative-base="$PWD" "$here/$1")}
folder=${folder:-runs/demo}
.venv/bin/autoprune search --task mnist5k --dense scripts/demo/resnet8.safetensors \
  --budget 25% --budget 12% --trials 64 --run-dir "$folder"
page=$(.venv/bin/autoprune report "$folder" | tail -n 1)
echo
echo "The page of this run, with every model that was tried: $(realpath "$page")"
echo "Take a model: source .venv/bin/activate; autoprune pick $folder --max-latency 25%; autoprune export $folder --help"
if [ -t 1 ]; then
  for opener in xdg-open open; do
    if command -v "$opener" >/dev/null && [ "$opener" = open -o -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
      "$opener" "$page" >/dev/null 2>&1 &
      break
    fi
  done
fi
