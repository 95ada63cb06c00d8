#!/bin/sh
# The end-to-end smoke test of a binary for another architecture, under qemu-user: pairs a dispatcher and an agent on loopback, pings, runs
# scripts and follows an asynchronous run. A router binary has no dispatcher: that part is then this machine's own static binary.
#
# usage: arch.sh ARCH [full|router]     ARCH: aarch64, armv7 or mipsel; without a profile those that have been built
#
# As root (Debian installs qemu-user-static) the kernel is told how to start such binaries (binfmt_misc, in a mount namespace of the test's
# own, taken back at its end), and scripts run through the executor. As anybody else QEMU is called by name, and the agent runs its scripts itself.
# A step that this way of running cannot do is said in a line that begins with NOTE.
set -eu
cd "$(dirname "$0")/../.."
arch=${1:?usage: arch.sh ARCH [full|router]}
host=target/dist/ctrl-exec-$(uname -m)

complain() {
    echo "arch: $*" >&2
    exit 1
}

case $arch in
aarch64) qemu=qemu-aarch64-static head='\x02\x01\x01' machine='\xb7' ;;
armv7) qemu=qemu-arm-static head='\x01\x01\x01' machine='\x28' ;;
mipsel) qemu=qemu-mipsel-static head='\x01\x01\x01' machine='\x08' ;;
*) complain "'$arch' is no architecture that is built here: use aarch64, armv7 or mipsel" ;;
esac
# The processor of most routers, which has no floating point unit and stops at what it does not know.
[ "$arch" != mipsel ] || export QEMU_CPU=24Kc

if ! command -v "$qemu" >/dev/null 2>&1; then
    if [ ! -f /etc/debian_version ] || [ "$(id -u)" != 0 ]; then complain "$qemu is missing (Debian: qemu-user-static)"; fi
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends qemu-user-static >/dev/null
fi
qemu=$(command -v "$qemu")

# Root's part happens in a mount namespace of its own: when it ends, so does what is mounted in it.
if [ "$(id -u)" = 0 ] && [ -z "${ARCH_CHECK_INSIDE:-}" ]; then
    ARCH_CHECK_INSIDE=1 exec unshare --mount --propagation private sh dist/checks/arch.sh "$@"
fi

work='' entry='' pids=''
cleanup() {
    for pid in $pids; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in $pids; do
        wait "$pid" 2>/dev/null || true
    done
    pids=''
    [ -z "$work" ] || rm -rf "$work"
    work=''
}
trap 'cleanup; [ -z "$entry" ] || echo -1 >"$entry" 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Makes the kernel start binaries of this architecture. Fails where nobody can.
register() {
    folder=/proc/sys/fs/binfmt_misc
    [ "$(id -u)" = 0 ] || return 1
    [ -f $folder/register ] || mount -t binfmt_misc binfmt_misc $folder 2>/dev/null || return 1
    name=ctrl-exec-check-$arch-$$
    zeros='\x00\x00\x00\x00\x00\x00\x00\x00'
    # Two bytes are passed over: the system (Linux or none) and the version of its ABI, by which MIPS tells about floating point.
    # F: QEMU is opened now, so that it is found in every chroot; P: it hears what name a program was called by.
    printf '%s' ":$name:M::\\x7fELF$head\\x00$zeros\\x02\\x00$machine\\x00:\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff:$qemu:PF" >$folder/register || return 1
    entry=$folder/$name
}

# ced, cea, ctrl-exec-exec, ctrl-exec: by link names where the kernel starts them, by QEMU otherwise. For a subshell: it becomes the program.
become() { # seconds host name words...
    patience=$1 name=$3
    export CTRL_EXEC_ROOT="$work/$2" CTRL_EXEC_HOSTNAME="smoke-$2"
    shift 3
    binary=$agent_binary
    [ "$name" != ced ] || binary=$dispatcher_binary
    if [ -n "$entry" ] || [ "$binary" = "$host" ]; then
        exec timeout "$patience" "$work/bin/$name" "$@"
    fi
    exec timeout "$patience" "$qemu" -0 "$name" "$binary" "$@"
}

# What is emulated is slow, but nothing here takes longer.
patient() { # host name words...
    (become 120 "$@")
}

background() { # log host name words...
    log=$1
    shift
    (CTRL_EXEC_LOG=stdout && export CTRL_EXEC_LOG && become 600 "$@") >"$log" 2>&1 &
    last=$!
    pids="$pids $last"
}

until_true() { # what log command...
    what=$1 log=$2
    shift 2
    waited=0
    while ! "$@" >/dev/null 2>&1; do
        waited=$((waited + 1))
        [ $waited -le 300 ] || {
            cat "$log" >&2
            complain "$what did not come within 60 s"
        }
        sleep 0.2
    done
}

expect() { # text, in the file
    grep -q -- "$1" "$2" || {
        cat "$2" >&2
        [ ! -f "$work/agent.log" ] || cat "$work/agent.log" >&2
        [ ! -f "$work/executor.log" ] || cat "$work/executor.log" >&2
        complain "expected '$1'"
    }
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

request_id() {
    patient dispatcher ced list-requests --json >"$work/requests" 2>/dev/null
    grep -q '"id"' "$work/requests"
}

smoke() { # profile
    agent_binary=target/dist/ctrl-exec-$arch
    dispatcher_binary=$agent_binary
    if [ "$1" = router ]; then
        agent_binary=$agent_binary-router
        dispatcher_binary=$host
        [ -f "$host" ] || complain "$host is missing: run 'make static' first"
    fi
    [ -f "$agent_binary" ] || complain "$agent_binary is missing: run 'make static ARCH=$arch PROFILE=$1' first"
    # Root's scripts must lie where only root can replace them.
    parent=${TMPDIR:-/tmp}
    [ "$(id -u)" != 0 ] || parent=/var/lib
    work=$(mktemp -d "$parent/ctrl-exec-arch-XXXXXX")
    chmod 755 "$work"
    etc=$work/agent/etc/ctrl-exec-agent
    mkdir -p "$work/bin" "$work/dispatcher" "$etc" "$work/scripts" "$work/agent/run/ctrl-exec-agent"
    ln -s "$PWD/$dispatcher_binary" "$work/bin/ced"
    ln -s "$PWD/$agent_binary" "$work/bin/cea"
    ln -s "$PWD/$agent_binary" "$work/bin/ctrl-exec-exec"
    ln -s "$PWD/$agent_binary" "$work/bin/ctrl-exec"
    port=$(free_port) pairing=$(free_port)
    # shellcheck disable=SC2016
    printf '#!/bin/sh\necho "greetings to $1"\n' >"$work/scripts/greet"
    printf '#!/bin/sh\necho to stderr >&2\nexit 3\n' >"$work/scripts/fail"
    printf '#!/bin/sh\nsleep 2\necho "rested"\n' >"$work/scripts/rest"
    printf '#!/bin/sh\nid -u\n' >"$work/scripts/who"
    chmod 755 "$work/scripts"/*
    for script in greet fail rest who; do
        printf '[scripts.%s]\npath = "%s"\n' "$script" "$work/scripts/$script"
    done >"$etc/scripts.toml"
    printf 'port = %s\nbind = "127.0.0.1"\nscript_dirs = ["%s"]\n' "$port" "$work/scripts" >"$work/agent.toml"
    { cat "$work/agent.toml" && echo '[profile.default]'; } >"$etc/agent.toml"

    patient agent cea --version >"$work/said"
    expect "^ctrl-exec-agent $version\$" "$work/said"
    if [ "$1" = router ]; then
        patient agent ctrl-exec ced ping x >"$work/said" 2>&1 && complain "a router binary has a dispatcher"
        expect "This build of ctrl-exec has no 'ced'" "$work/said"
        patient agent ctrl-exec --help >"$work/said"
        expect '^  cea ' "$work/said"
        ! grep -qw -e ced -e ced-api -e demo "$work/said" || complain "--help of a router binary lists what it has not"
    fi

    patient dispatcher ced setup-ca >/dev/null
    patient dispatcher ced setup-ctrl-exec >"$work/said"
    fingerprint=$(sed -n 's/^Fingerprint: *//p' "$work/said")
    [ -n "$fingerprint" ] || complain "setup-ctrl-exec shows no fingerprint"
    background "$work/pairing.log" dispatcher ced pairing-mode --port "$pairing" --timeout 300
    until_true "the pairing listener" "$work/pairing.log" python3 -c "import socket; socket.create_connection(('127.0.0.1', $pairing)).close()"
    background "$work/request.log" agent cea request-pairing --dispatcher 127.0.0.1 --port "$pairing" --lookup-by ip --dispatcher-fingerprint "$fingerprint"
    requesting=$last
    until_true "the pairing request" "$work/request.log" request_id
    id=$(sed -n 's/.*"id" *: *"\([^"]*\)".*/\1/p' "$work/requests" | head -n 1)
    patient dispatcher ced approve "$id" >/dev/null 2>&1
    wait "$requesting" || {
        cat "$work/request.log" >&2
        complain "the agent did not finish pairing"
    }
    echo "  paired"

    mode=direct
    if [ -n "$entry" ]; then
        executor_is_there && mode=executor
    else
        echo "NOTE: without binfmt_misc nothing that restarts itself can be tried: the agent runs its scripts directly, none asynchronously"
    fi
    background "$work/agent.log" agent cea serve
    serving=$last
    until_true "the agent" "$work/agent.log" grep -q ACTION=start "$work/agent.log"
    patient dispatcher ced ping smoke-agent >"$work/said" 2>&1 || { cat "$work/said" "$work/agent.log" >&2; complain "no ping"; }
    expect smoke-agent "$work/said"
    expect "$version" "$work/said"
    echo "  pinged"
    patient dispatcher ced run smoke-agent greet -- "two words" >"$work/said" 2>&1 || true
    if [ $mode = executor ] && grep -q 'there is more than one thread' "$work/executor.log"; then
        # The executor insists on having one thread before it forks, and QEMU has one of its own in the same process.
        echo "NOTE: qemu-user adds a thread, so the executor rightly refuses to fork: it starts and answers, but the agent runs the scripts itself here"
        mode=direct
        kill "$serving"
        wait "$serving" || true
        cp "$work/direct.toml" "$etc/agent.toml"
        # What is waited for below shall not be what the first one has said.
        rm "$work/agent.log"
        background "$work/agent.log" agent cea serve
        until_true "the agent" "$work/agent.log" grep -q ACTION=start "$work/agent.log"
        patient dispatcher ced run smoke-agent greet -- "two words" >"$work/said" 2>&1 || true
    fi
    expect '^greetings to two words$' "$work/said"
    status=0
    patient dispatcher ced run smoke-agent fail >"$work/said" 2>&1 || status=$?
    [ $status = 1 ] || complain "a failing script gave exit $status"
    expect 'STDERR: to stderr$' "$work/said"
    patient dispatcher ced run smoke-agent absent >"$work/said" 2>&1 && complain "a script that is not allowed ran"
    expect 'not permitted' "$work/said"
    patient dispatcher ced run smoke-agent who >"$work/said" 2>&1 || true
    if [ $mode = executor ]; then
        expect '^65534$' "$work/said"
    else
        expect "^$(id -u)\$" "$work/said"
    fi
    echo "  ran scripts ($mode)"
    if [ -n "$entry" ]; then
        patient dispatcher ced run smoke-agent rest --async --json >"$work/said" 2>&1 || { cat "$work/said" >&2; complain "no asynchronous run"; }
        reqid=$(sed -n 's/.*"reqid" *: *"\([^"]*\)".*/\1/p' "$work/said" | head -n 1)
        patient dispatcher ced wait "$reqid" --timeout 60 >"$work/said" 2>&1 || { cat "$work/said" "$work/agent.log" >&2; complain "the asynchronous run failed"; }
        expect rested "$work/said"
        echo "  ran one asynchronously"
    fi
    cleanup
}

# Starts the executor if QEMU lets it live, and tells the agent to use it.
executor_is_there() {
    socket=$work/agent/run/ctrl-exec-agent/exec.sock
    cp "$etc/agent.toml" "$work/direct.toml"
    {
        cat "$work/agent.toml"
        printf 'executor_socket = "/run/ctrl-exec-agent/exec.sock"\n\n[executor]\nbaseline = "compat"\n\n[profile.default]\nrun_as = "nobody"\n'
    } >"$etc/agent.toml"
    background "$work/executor.log" agent ctrl-exec-exec serve "$socket" "$etc/agent.toml" "$etc/scripts.toml" root
    until_true "the executor" "$work/executor.log" test -S "$socket"
}

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
register || true
done=no
for profile in ${2:-full router}; do
    binary=target/dist/ctrl-exec-$arch
    [ "$profile" = full ] || binary=$binary-$profile
    [ -n "${2:-}" ] || [ -f "$binary" ] || continue
    echo "$arch, $profile:"
    smoke "$profile"
    done=yes
done
[ $done = yes ] || complain "nothing has been built for $arch: run 'make static ARCH=$arch' first"
echo "arch: $arch passed"
