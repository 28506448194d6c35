#!/usr/bin/env bash
# Everything that `make test` checks, in the order in which a mistake is cheapest to find.
set -euo pipefail
BIN=$(cd "${BIN:-.venv/bin}" && pwd)
export DENSE_SSL_RUNS=$(mktemp -d) MPLBACKEND=agg OMP_NUM_THREADS=1
trap 'rm -rf "$DENSE_SSL_RUNS"' EXIT
step() { printf '\n== %s\n' "$1"; }

step "the package is what the notebooks export, and every notebook is clean"
"$BIN/python" tests/sync.py

step "README.md is what nbs/index.ipynb shows"
"$BIN/python" tests/readme.py

step "layers"
"$BIN/lint-imports"

step "ruff"
"$BIN/ruff" check dense_ssl tests benchmarks

step "every notebook, in a process of its own"
"$BIN/python" tests/notebooks.py

step "what notebooks cannot hold"
"$BIN/python" -m pytest -q tests
