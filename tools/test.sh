#!/usr/bin/env bash
# Sets up as quickstart.sh does, then checks style and types and runs the whole test suite.
# usage: bash tools/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,3s/^# //p' "$0"; exit ;; esac
source tools/setup.sh
install "cluster,wandb,dev"
say "ruff"
.venv/bin/ruff check .
say "mypy"
.venv/bin/mypy
say "pytest"
exec .venv/bin/python -m pytest "$@"
