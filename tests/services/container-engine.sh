#!/bin/bash
# A Docker daemon for tests alone, on a socket and in a directory of its own; or podman, set up to work in the same places.
# For root on Debian or Ubuntu: it installs what is missing.
#
#   container-engine.sh start | stop | wipe
#   eval "$(container-engine.sh env)"      PATH and DOCKER_HOST for the engine's command
#
# Environment: CONTAINER_ENGINE (docker or podman), CONTAINER_ENGINE_DIR (default /tmp/axbake-container-engine)
#
# The daemon has no bridge and sets no firewall rules, so containers have no network but with `--network host`.
set -euo pipefail
DIR=${CONTAINER_ENGINE_DIR:-/tmp/axbake-container-engine}
ENGINE=${CONTAINER_ENGINE:-docker}
SOCKET=$DIR/docker.sock
export PATH=$PATH:/usr/sbin:/sbin

fail() { echo "container-engine: $*" >&2; exit 1; }

install() { # install PACKAGE...
    [ "$(id -u)" = 0 ] || fail "needs root to install $*"
    command -v apt-get >/dev/null || fail "no apt-get here; install $* yourself"
    local get=(apt-get -o DPkg::Lock::Timeout=300) policy=/usr/sbin/policy-rc.d made=
    # Debian starts a service when its package is installed, unless this says no.
    if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; made=1; fi
    export DEBIAN_FRONTEND=noninteractive
    if ! { "${get[@]}" install -y --no-install-recommends "$@" ||
           { "${get[@]}" update && "${get[@]}" install -y --no-install-recommends "$@"; }; } >"$DIR/apt.log" 2>&1 </dev/null; then
        [ -z "$made" ] || rm -f $policy
        tail -5 "$DIR/apt.log" >&2
        fail "apt-get cannot install $*; see $DIR/apt.log"
    fi
    [ -z "$made" ] || rm -f $policy
}

daemon() { # the daemon's process id, if it runs
    local id
    id=$(cat "$DIR/docker.pid" 2>/dev/null) && [ "$(cat "/proc/$id/comm" 2>/dev/null)" = dockerd ] && echo "$id"
}

start_docker() {
    command -v dockerd >/dev/null && command -v docker >/dev/null || install docker.io
    ! daemon >/dev/null || return 0
    rm -f "$SOCKET" "$DIR/docker.pid"
    setsid dockerd --data-root "$DIR/data" --exec-root "$DIR/exec" --pidfile "$DIR/docker.pid" --host "unix://$SOCKET" \
        --bridge none --iptables=false --ip6tables=false </dev/null >>"$DIR/dockerd.log" 2>&1 &
    for _ in $(seq 300); do
        ! docker --host "unix://$SOCKET" version >/dev/null 2>&1 || return 0
        sleep 0.2
    done
    tail -5 "$DIR/dockerd.log" >&2
    fail "the Docker daemon does not come up; see $DIR/dockerd.log"
}

start_podman() {
    local missing=()
    command -v podman >/dev/null || missing+=(podman)
    command -v runc >/dev/null || missing+=(runc)
    [ -x /usr/lib/podman/netavark ] || missing+=(netavark)
    [ -x /usr/libexec/podman/catatonit ] || missing+=(catatonit) # for --init
    [ ${#missing[@]} = 0 ] || install "${missing[@]}"
    mkdir -p "$DIR/bin"
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$DIR" "$DIR" >"$DIR/storage.conf"
    # Limits below what this machine allows, since podman cannot raise them without CAP_SYS_RESOURCE; runc, since Debian 12's
    # crun refuses cgroups of versions 1 and 2 beside each other.
    cat >"$DIR/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
netns = "none"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
CONF
    cat >"$DIR/bin/podman" <<SH
#!/bin/sh
export CONTAINERS_STORAGE_CONF=$DIR/storage.conf CONTAINERS_CONF=$DIR/containers.conf
exec $(command -v podman) "\$@"
SH
    chmod 755 "$DIR/bin/podman"
}

stop() {
    local id
    if [ -x "$DIR/bin/podman" ]; then "$DIR/bin/podman" rm --force --all >/dev/null 2>&1 || true; fi
    id=$(daemon) || return 0
    kill "$id"
    for _ in $(seq 300); do
        daemon >/dev/null || return 0
        sleep 0.1
    done
    fail "the Docker daemon $id does not end"
}

case ${1:-} in
    start) mkdir -p "$DIR"; "start_$ENGINE" ;;
    stop) stop ;;
    wipe) stop
          awk -v d="$DIR/" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount
          rm -rf "$DIR" ;;
    env) printf 'export PATH=%q:$PATH DOCKER_HOST=%q\n' "$DIR/bin" "unix://$SOCKET" ;;
    *) fail "usage: $0 start|stop|wipe|env" ;;
esac
