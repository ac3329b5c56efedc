#!/usr/bin/env bash
# Install what development needs, then run every check.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE  # what is imported is compiled once
bash scripts/install.sh dev
exec bash scripts/check.sh
