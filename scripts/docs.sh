#!/usr/bin/env bash
# Build the pages of docs/ into build/site; a broken link or a page that is missing from the list fails.
# Usage: docs.sh [serve]   (`serve` shows them on http://127.0.0.1:8000 and follows changes)
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh docs
export NO_MKDOCS_2_WARNING=1
if [ "${1:-}" = serve ]; then exec .venv/bin/mkdocs serve --strict; fi
.venv/bin/mkdocs build --strict --quiet
echo "build/site/index.html"
