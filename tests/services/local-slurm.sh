#!/bin/bash
# A one-node Slurm on loopback, for tests: munged + slurmctld + slurmd.
# No slurmdbd, no database, no cgroups, nothing written under /etc.
#
#   local-slurm.sh start     install what is missing, write the config, start (no-op if up)
#   local-slurm.sh stop      cancel jobs, stop the three daemons by PID
#   local-slurm.sh status    0 if the controller answers and the node is usable
#   local-slurm.sh env       shell lines for: eval "$(local-slurm.sh env)"
#   local-slurm.sh wipe      stop, then delete the directory
#
# Environment (all optional):
#   LOCAL_SLURM_DIR      config, state, logs, sockets   (default /tmp/local-slurm)
#   LOCAL_SLURM_CPUS     CPUs the node claims           (default: nproc)
#   LOCAL_SLURM_MEM_MB   memory the node claims         (default: 90 % of MemTotal)
#   LOCAL_SLURM_PORT     slurmctld port, slurmd is +1   (default 16817)
#   LOCAL_SLURM_NO_INSTALL=1   never call apt-get
#
# Why `env` also puts $DIR/bin first on PATH: the Snakemake jobstep executor
# drops SLURM_CONF from the environment before it calls srun inside a job, so
# srun would look for /etc/slurm/slurm.conf. $DIR/bin/srun puts SLURM_CONF back.
set -euo pipefail

DIR=${LOCAL_SLURM_DIR:-/tmp/local-slurm}
PORT=${LOCAL_SLURM_PORT:-16817}
NODE=localhost
export SLURM_CONF=$DIR/slurm.conf

say() { echo "local-slurm: $*" >&2; }
die() { say "$*"; exit 1; }

# pid_of FILE EXE: prints the PID in FILE if that process is EXE and runs. A zombie
# (PID 1 of a container may be slow to reap) counts as gone.
pid_of() {
    local pid name state
    [ -s "$1" ] || return 1
    pid=$(tr -dc 0-9 <"$1"); [ -n "$pid" ] || return 1
    name=$(awk '/^Name:/ {print $2}' "/proc/$pid/status" 2>/dev/null) || return 1
    state=$(awk '/^State:/ {print $2}' "/proc/$pid/status" 2>/dev/null) || return 1
    [ "$state" != Z ] && [ "$state" != X ] || return 1
    case $name in "$2"*) echo "$pid" ;; *) return 1 ;; esac
}

alive() { pid_of "$DIR/run/$1.pid" "$1" >/dev/null; }

down() { ! alive "$1"; }

# wait_for SECONDS COMMAND...
wait_for() {
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

missing() {
    local c
    for c in munged slurmctld slurmd sbatch; do
        PATH=$PATH:/usr/sbin:/sbin command -v $c >/dev/null || echo $c
    done
}

install_missing() {
    [ -n "$(missing)" ] || return 0
    [ -z "${LOCAL_SLURM_NO_INSTALL:-}" ] || die "missing: $(missing | xargs)"
    [ "$(id -u)" = 0 ] || die "missing: $(missing | xargs) (need root to install)"
    command -v apt-get >/dev/null || die "missing: $(missing | xargs) (no apt-get here; install slurm-wlm and munge)"
    # Two of this script at once: the second one finds all installed.
    exec 9>/tmp/local-slurm-install.lock
    flock 9
    [ -n "$(missing)" ] || { exec 9>&-; return 0; }
    say "installing slurm-wlm and munge"
    # Others may install something at the same time: apt waits for them.
    local install="apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends slurm-wlm munge"
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then        # keep apt from starting system services
        printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; made=1
    fi
    local rc=0
    export DEBIAN_FRONTEND=noninteractive
    { $install || { apt-get update && $install; }; } >"$DIR/log/apt.log" 2>&1 </dev/null || rc=$?
    [ -z "$made" ] || rm -f $policy
    [ $rc = 0 ] || die "apt-get failed: $(tail -n 3 "$DIR/log/apt.log")"
    exec 9>&-
}

write_config() {
    local cpus mem real
    cpus=${LOCAL_SLURM_CPUS:-$(nproc)}
    real=$(awk '/^MemTotal:/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    mem=${LOCAL_SLURM_MEM_MB:-$real}
    if [ ! -s "$DIR/munge.key" ]; then
        (umask 077; dd if=/dev/urandom of="$DIR/munge.key" bs=128 count=1 2>/dev/null)
    fi
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$NODE(127.0.0.1)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/run/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.log
PlugStackConfig=$DIR/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=60
InactiveLimit=0
KillWait=5
WaitTime=0
# squeue has to keep showing ended jobs, as there is no accounting database
MinJobAge=3600
MaxJobCount=10000
MaxArraySize=1001
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=1,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
# memory over the request kills the job (sampled; there is no cgroup)
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.log
# the node may claim more CPUs or memory than the machine has
SlurmdParameters=config_overrides
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$mem State=UNKNOWN
PartitionName=main Nodes=$NODE Default=YES MaxTime=24:00:00 DefaultTime=00:10:00 State=UP
PartitionName=long Nodes=$NODE MaxTime=24:00:00 DefaultTime=01:00:00 State=UP
CONF
    : >"$DIR/plugstack.conf"
    cat >"$DIR/bin/srun" <<SRUN
#!/bin/sh
SLURM_CONF=\${SLURM_CONF:-$DIR/slurm.conf}; export SLURM_CONF
exec $(PATH=/usr/bin:/bin command -v srun) "\$@"
SRUN
    chmod 755 "$DIR/bin/srun"
}

node_ready() {
    local s
    s=$(sinfo -h -N -n $NODE -o %T 2>/dev/null | head -1) || return 1
    case $s in idle|mixed|allocated|completing) return 0 ;; *) return 1 ;; esac
}

start() {
    umask 022
    mkdir -p "$DIR"/{run,log,state,spool,bin}
    chmod 755 "$DIR" "$DIR"/{run,log,state,spool,bin}
    PATH=$PATH:/usr/sbin:/sbin
    install_missing
    if alive munged && alive slurmctld && alive slurmd && node_ready; then
        say "already up in $DIR"; return 0
    fi
    write_config
    # daemons get no descriptor of ours but these, so a caller's pipe can close
    if ! alive munged; then
        rm -f "$DIR"/run/munge.socket*
        munged --socket="$DIR/run/munge.socket" --key-file="$DIR/munge.key" \
            --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" \
            --seed-file="$DIR/run/munged.seed" --origin=127.0.0.1 \
            </dev/null >>"$DIR/log/munged.out" 2>&1 || die "munged failed, see $DIR/log/munged.out"
        wait_for 10 munge -S "$DIR/run/munge.socket" -n || die "munged does not answer"
    fi
    if ! alive slurmctld; then
        slurmctld -f "$SLURM_CONF" </dev/null >>"$DIR/log/slurmctld.out" 2>&1 ||
            die "slurmctld failed, see $DIR/log/slurmctld.out"
        wait_for 30 scontrol ping || die "slurmctld does not answer, see $DIR/log/slurmctld.log"
    fi
    if ! alive slurmd; then
        slurmd -N $NODE -f "$SLURM_CONF" </dev/null >>"$DIR/log/slurmd.out" 2>&1 ||
            die "slurmd failed, see $DIR/log/slurmd.out"
    fi
    wait_for 10 node_ready ||
        scontrol update NodeName=$NODE State=RESUME 2>/dev/null || true
    wait_for 30 node_ready || die "the node is not ready: $(sinfo -h -N -o '%N %T %E' || true)"
    say "up in $DIR"
}

# stop_one NAME: TERM the daemon in its PID file, wait, then KILL.
stop_one() {
    local pid
    pid=$(pid_of "$DIR/run/$1.pid" "$1") || return 0
    kill "$pid" 2>/dev/null || true
    wait_for 20 down "$1" || { say "$1 ($pid) did not stop, killing it"; kill -9 "$pid" || true; }
    rm -f "$DIR/run/$1.pid"
}

no_jobs() { [ -z "$(squeue -h -t PD,R,CG,S 2>/dev/null)" ]; }

stop() {
    PATH=$PATH:/usr/sbin:/sbin
    [ -d "$DIR/run" ] || { say "not set up in $DIR"; return 0; }
    if alive slurmctld && alive slurmd; then
        scancel -u "$(id -un)" 2>/dev/null || true
        wait_for 30 no_jobs || say "some jobs did not end"
    fi
    stop_one slurmd
    stop_one slurmctld
    stop_one munged
    say "stopped"
}

status() {
    PATH=$PATH:/usr/sbin:/sbin
    local d pid rc=0
    for d in munged slurmctld slurmd; do
        if pid=$(pid_of "$DIR/run/$d.pid" $d); then echo "$d pid $pid"; else echo "$d down"; rc=1; fi
    done
    [ $rc = 0 ] || return 1
    sinfo -N -o '%N %P %T %c %m %E' || return 1
    node_ready
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    status) status ;;
    env)
        printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
        printf 'case ":$PATH:" in *:%q:*) ;; *) PATH=%q:$PATH; export PATH ;; esac\n' "$DIR/bin" "$DIR/bin" ;;
    wipe) stop; rm -rf "$DIR" ;;
    *) die "usage: $0 start|stop|status|env|wipe" ;;
esac
