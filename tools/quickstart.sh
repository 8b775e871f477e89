#!/usr/bin/env bash
# From a fresh checkout to samples: installs into .venv, writes the embedded data set, trains, samples, shows where.
# usage: bash tools/quickstart.sh [overrides of configs/train.yaml, e.g. budget.images=100_000]
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,3s/^# //p' "$0"; exit ;; esac
both=() # overrides that sampling takes as well
for one in "$@"; do
    case $one in
        run=*) echo "error: $one: the quick start's run is runs/quickstart; launch/train.py takes another" >&2; exit 2 ;;
        device=* | precision=* | track=* | track.*) both+=("$one") ;;
    esac
done
source tools/setup.sh
install "cluster,wandb,diagnose,report,evaluate"
gpus=$(.venv/bin/python -c 'import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)')
processes=$((gpus > 0 ? gpus : 2))
batch=$(sed -n '/^budget:/,/^[a-z]*:$/s/^  batch: //p' configs/experiment/quickstart.yaml)
batch=$(((batch + processes - 1) / processes * processes)) # it is dealt out evenly
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # torchrun's own default, without its warning; training shares out the cores
start=$SECONDS

say "1/3 the embedded data set: coloured shapes"
.venv/bin/python tools/prepare_data.py shapes

say "2/3 training the small U-Net energy on $processes processes ($([ "$gpus" -gt 0 ] && echo GPUs || echo CPU))"
.venv/bin/torchrun --standalone --nproc-per-node "$processes" launch/train.py experiment=quickstart budget.batch="$batch" \
    run=runs/quickstart "$@"

say "3/3 sampling"
.venv/bin/torchrun --standalone --nproc-per-node "$processes" launch/sample.py run=runs/quickstart n=64 \
    batch=$(((64 + processes - 1) / processes)) "${both[@]}"

say "done in $(((SECONDS - start) / 60)) min $(((SECONDS - start) % 60)) s. Pictures:"
ls runs/quickstart/previews/*.png runs/quickstart/samples/*.png
.venv/bin/python tools/report.py runs/quickstart
