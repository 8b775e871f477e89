#!/usr/bin/env bash
# Starts a real SLURM on this machine: accounting, several nodes with pretended GPUs, two partitions with preemption.
# usage: bash slurm/local/up.sh [nodes]      then: source <folder>/env      stop: bash slurm/local/down.sh
# EBM_CLUSTER=<folder> (default /tmp/ebm-cluster-<user>) holds all of it; EBM_CLUSTER_PORT=<first port> (default 17000);
# EBM_CLUSTER_ARRAY=<most elements of a job array> (default 50).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case "${1:-}" in -h | --help) sed -n '2,5s/^# //p' "$0"; exit ;; esac
nodes=${1:-2}
[[ $nodes =~ ^[1-9][0-9]?$ ]] || { echo "error: nodes: '$nodes' is not accepted; give a number from 1 to 99" >&2; exit 2; }
export PATH=$PATH:/usr/sbin:/sbin
me=$(id -un)
root=${EBM_CLUSTER:-/tmp/ebm-cluster-$me}
port=${EBM_CLUSTER_PORT:-17000}
mark=.ebm-cluster # in a folder that is all ours: down.sh removes it whole

fail() { echo "error: $1" >&2; exit 1; }

need() { # the daemons, from Debian's packages where they may be installed
    local packages="slurm-wlm slurmdbd munge mariadb-server" missing=
    for program in slurmctld slurmd slurmdbd munged mariadbd; do command -v $program >/dev/null || missing="$missing $program"; done
    [ -z "$missing" ] && return
    echo "installing $packages (missing:$missing)"
    local sudo=; [ "$(id -u)" = 0 ] || sudo="sudo -n"
    # The packages' own services are not wanted: policy-rc.d keeps them from starting where nobody else decides it.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ] && [ "$(id -u)" = 0 ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; made=1; fi
    { $sudo apt-get update -q && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o DPkg::Lock::Timeout=300 $packages; } >/tmp/ebm-cluster-apt.$$.log 2>&1 ||
        { tail -n 3 /tmp/ebm-cluster-apt.$$.log >&2; [ -z "$made" ] || rm -f $policy; fail "cannot install them; ask for: $packages"; }
    [ -z "$made" ] || rm -f $policy
    rm -f /tmp/ebm-cluster-apt.$$.log
}

within() { # within <seconds> <what> <command …>: waits until the command succeeds
    local seconds=$1 what=$2 start=$SECONDS; shift 2
    until "$@" >/dev/null 2>&1; do
        [ $((SECONDS - start)) -lt "$seconds" ] || fail "$what did not come up within $seconds s; logs: $root/log"
        sleep 0.2
    done
}

need
if [ -e "$root/$mark" ]; then bash "$here/down.sh" >/dev/null; fi
[ -z "$(ls -A "$root" 2>/dev/null)" ] || fail "EBM_CLUSTER: $root is not accepted; it holds what is no cluster of this script's"
mkdir -p "$root"/{log,run,state,db,spool}
: >"$root/$mark"
chmod 755 "$root"
trap 'echo "the cluster did not start; logs: $root/log" >&2' ERR

# Who is who: a key of our own, so that an installed cluster and this one don't know each other.
head -c 1024 /dev/urandom >"$root/munge.key"
chmod 600 "$root/munge.key"
munged --force --key-file="$root/munge.key" --socket="$root/run/munge" --pid-file="$root/run/munged.pid" \
    --log-file="$root/log/munged.log" --seed-file="$root/state/munge.seed"

# Accounting, without which there is no sacct.
mariadb-install-db --no-defaults --user="$me" --datadir="$root/db" --auth-root-authentication-method=normal --skip-test-db \
    >"$root/log/mariadb-install.log" 2>&1
setsid mariadbd --no-defaults --user="$me" --datadir="$root/db" --socket="$root/run/mysql" --port=$((port + 1)) \
    --bind-address=127.0.0.1 --pid-file="$root/run/mariadbd.pid" --innodb-buffer-pool-size=32M --innodb-log-file-size=8M \
    --skip-name-resolve >"$root/log/mariadbd.log" 2>&1 </dev/null &
within 60 "the database" mariadb --no-defaults --socket="$root/run/mysql" -uroot -e 'select 1'
mariadb --no-defaults --socket="$root/run/mysql" -uroot -e \
    "create database slurm; create user slurm@127.0.0.1 identified by 'slurm'; grant all on slurm.* to slurm@127.0.0.1"
cat >"$root/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$root/run/munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 2))
SlurmUser=$me
LogFile=$root/log/slurmdbd.log
PidFile=$root/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 1))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
CONF
chmod 600 "$root/slurmdbd.conf"

{ cat <<CONF
ClusterName=ebm
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$((port + 3))
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired: 120 s by default.
AuthInfo=socket=$root/run/munge,cred_expire=5
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd-%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd-%n.log
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 2))
AccountingStoragePass=$root/run/munge
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
# Short, so that faults are seen and mended within a test.
SlurmdTimeout=12
KillWait=20
MinJobAge=600
CompleteWait=0
SchedulerParameters=sched_interval=3,bf_interval=3,batch_sched_delay=0,sched_min_interval=10000
MaxArraySize=$((${EBM_CLUSTER_ARRAY:-50} + 1))
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=urgent Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
for i in $(seq "$nodes"); do
    echo "NodeName=n$i NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 10 + i)) CPUs=8 RealMemory=4000 Gres=gpu:2 State=UNKNOWN"
done; } >"$root/slurm.conf"
touch "$root/gpu0" "$root/gpu1"
echo "NodeName=n[1-$nodes] Name=gpu File=$root/gpu[0-1]" >"$root/gres.conf"
echo "export SLURM_CONF=$root/slurm.conf" >"$root/env"
export SLURM_CONF=$root/slurm.conf

setsid env SLURM_CONF="$root/slurmdbd.conf" slurmdbd </dev/null >"$root/log/slurmdbd.out" 2>&1 ||
    fail "slurmdbd did not start: $(tail -n 1 "$root/log/slurmdbd.out")"
within 30 slurmdbd sacctmgr -n list cluster
sacctmgr -i add cluster ebm >/dev/null
setsid slurmctld -f "$SLURM_CONF" </dev/null >"$root/log/slurmctld.out" 2>&1
within 30 slurmctld scontrol ping
for i in $(seq "$nodes"); do setsid slurmd -N "n$i" -f "$SLURM_CONF" </dev/null >"$root/log/slurmd-n$i.out" 2>&1; done
idle() { [ "$(sinfo -h -p main -t idle -o %D)" = "$nodes" ]; }
within 60 "$nodes nodes" idle
echo "$nodes nodes are up, with two pretended GPUs each. For this shell: source $root/env"
