#!/usr/bin/env bash
#SBATCH --job-name=autoprune
#SBATCH --nodes=4
#SBATCH --tasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
# A search on whole nodes. When the time is up Slurm sends SIGTERM two minutes before, the search stops cleanly, and the
# job that is queued again resumes it. Usage: sbatch slurm.sh CONFIG.yaml RUN_DIR (on a file system that all nodes see)
set -euo pipefail
config=$1 run=$2
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/autoprune-$SLURM_JOB_ID"
mkdir -p "$HOME/.ray"
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
  ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
  autoprune search "$config" --run-dir "$run" --executor ray --ray-address "$head:6379" --storage "journal:$run.journal" &
search=$!
again() {
  kill -TERM "$search" && wait "$search" || true
  rm -f "$RAY_AUTH_TOKEN_PATH"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap again TERM
wait "$search"
rm -f "$RAY_AUTH_TOKEN_PATH"
