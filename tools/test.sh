#!/usr/bin/env bash
# Sets up as quickstart.sh does, then checks style and types and runs the whole test suite.
# usage: bash tools/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,3s/^# //p' "$0"; exit ;; esac
source tools/setup.sh
install "cluster,wandb,evaluate,dev"
if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
    say "the report is looked at in Chromium (chromium chromium-driver); installing it"
    apt_install chromium chromium-driver || say "it can't be installed here"
fi
say "ruff"
.venv/bin/ruff check .
say "mypy"
.venv/bin/mypy
say "pytest"
# A process for every core; each file's tests stay together, as they share what is made once, such as a cluster.
exec .venv/bin/python -m pytest -n "$(nproc)" --maxprocesses 4 --dist loadfile "$@"
