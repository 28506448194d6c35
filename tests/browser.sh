#!/usr/bin/env bash
# What the tests in a browser need beside the project's own packages: Playwright and, on Debian, its Chromium. Then they run; screenshots lie in $1.
set -euo pipefail
BIN=$(cd "${BIN:-.venv/bin}" && pwd)
export DENSE_SSL_SCREENSHOTS=${1:-$(mktemp -d)} MPLBACKEND=agg OMP_NUM_THREADS=1
"$BIN/python" -c "import playwright" 2>/dev/null || "$BIN/python" -m pip install -q playwright
if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium fonts-dejavu-core
fi
"$BIN/python" -m pytest -q -rs --durations=3 tests/test_explorer.py tests/test_clickable.py tests/test_site.py
echo "screenshots: $DENSE_SSL_SCREENSHOTS"
