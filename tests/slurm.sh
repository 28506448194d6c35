#!/bin/sh
# A SLURM of one machine, this one, for tests/test_slurm.py: `tests/slurm.sh start FOLDER` (as root; installs Debian's packages
# where they are missing), `tests/slurm.sh stop FOLDER`. Everything but the packages and munge's key lies in FOLDER.
# /etc/slurm/slurm.conf becomes a link into it, for what a job starts knows no other place; where there is one, nothing is done.
# Partitions: main, whose jobs are requeued when a job of urgent wants their place.
set -eu
folder=$2
export SLURM_CONF="$folder/slurm.conf"

stop() {
    for daemon in slurmd slurmctld munged; do
        [ -f "$folder/$daemon.pid" ] && kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true
    done
    [ "$(readlink /etc/slurm/slurm.conf)" = "$SLURM_CONF" ] && rm /etc/slurm/slurm.conf || true
}

start() {
    [ -e /etc/slurm/slurm.conf ] && echo "this machine has a SLURM of its own: /etc/slurm/slurm.conf" >&2 && return 1
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && command -v sbatch >/dev/null || {
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
    }
    mkdir -p "$folder/state" "$folder/spool" /etc/slurm && chmod 755 "$folder"
    ln -sfn "$SLURM_CONF" /etc/slurm/slurm.conf
    host=$(hostname -s)
    hardware=$(slurmd -C | head -1 | sed 's/^NodeName=[^ ]* //')
    head -c 1024 /dev/urandom > "$folder/munge.key" && chmod 400 "$folder/munge.key"
    cat > "$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
SlurmctldPort=$((20000 + $$ % 10000))
SlurmdPort=$((30000 + $$ % 10000))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=2
MinJobAge=300
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 $hardware State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=$host MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
CONF
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
    slurmctld -c
    slurmd
    for _ in $(seq 60); do
        sinfo -h -o %T 2>/dev/null | grep -q idle && return 0
        sleep 0.5
    done
    echo "the node did not become idle:" >&2
    tail -n 5 "$folder"/*.log >&2
    return 1
}

"$1"
