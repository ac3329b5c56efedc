#!/usr/bin/env bash
# Install what development needs, then run every check.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh dev
exec bash scripts/check.sh
