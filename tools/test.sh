#!/usr/bin/env bash
# Sets up as quickstart.sh does, then checks style and types and runs the whole test suite.
# usage: bash tools/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,3s/^# //p' "$0"; exit ;; esac
source tools/setup.sh
browser="chromium chromium-driver" # in which the report is looked at
has_browser() { command -v chromium && command -v chromedriver; } >/dev/null
# shellcheck disable=SC2086
install "cluster,wandb,evaluate,dev" $(has_browser || echo "$browser")
# shellcheck disable=SC2086
has_browser || apt_install $browser || say "the tests of the report need $browser, which can't be installed here"
say "ruff"
.venv/bin/ruff check .
if [ "${EBM_LOWEST:-0}" = 0 ]; then # older releases are typed otherwise
    say "mypy"
    .venv/bin/mypy --num-workers "$(nproc)"
fi
say "pytest"
# A process for every core and one for the cluster, which mostly waits; each file's tests stay together, as they share what is
# made once, such as that cluster.
exec .venv/bin/python -m pytest -n $(($(nproc) + 1)) --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
