#!/usr/bin/env bash
# Stops the cluster that up.sh has started, with its jobs, and removes its folder.
set -uo pipefail
case "${1:-}" in -h | --help) sed -n '2s/^# //p' "$0"; exit ;; esac
export PATH=$PATH:/usr/sbin:/sbin
root=${EBM_CLUSTER:-/tmp/ebm-cluster-$(id -un)}
[ -e "$root/.ebm-cluster" ] || { echo "no cluster in $root"; exit 0; }
export SLURM_CONF=$root/slurm.conf

ours() { pgrep -f "$root/|$root\$" | grep -vx $$; } # daemons, job steps and database: all have the folder on their command line

if timeout 5 scontrol ping >/dev/null 2>&1; then
    timeout 10 scancel --full --signal=KILL --state=running 2>/dev/null
    timeout 10 scancel --state=pending 2>/dev/null
fi
for name in slurmd slurmctld slurmdbd mariadbd munged; do
    for file in "$root"/run/$name*.pid; do [ -e "$file" ] && kill "$(cat "$file")" 2>/dev/null; done
done
for _ in $(seq 50); do
    pids=$(for file in "$root"/run/*.pid; do cat "$file" 2>/dev/null; done | while read -r pid; do kill -0 "$pid" 2>/dev/null && echo "$pid"; done)
    [ -z "$pids" ] && break
    sleep 0.2
done
# shellcheck disable=SC2086
[ -n "${pids:-}" ] && kill -9 $pids 2>/dev/null
left=$(ours) && kill -9 $left 2>/dev/null
rm -rf "$root"
echo "the cluster in $root is gone"
