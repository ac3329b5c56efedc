#!/usr/bin/env bash
# Submit a search to a Ray cluster that runs. Usage: ray_job.sh http://HEAD:8265 NAME CONFIG.yaml
# The same NAME resumes the same run: its folder is on the head, and a job that failed is submitted again.
set -euo pipefail
address=$1 name=$2 config=$3
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
exec ray job submit --address "$address" --submission-id "autoprune-$name-$(date +%s)" --working-dir . --no-wait -- \
  autoprune search "$config" --run-dir "\$HOME/autoprune/$name" --executor ray --ray-address auto
