#!/bin/sh
# Whether the system call filters of the systemd units leave our programs everything they call: a call outside of the filter ends the
# process, and only systemd as the first process would show that. So agent, API and maintenance are watched by strace while they pair, ping,
# run, reload and stop, and what they called is compared with what systemd says is in each unit's filter.
set -u
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=dist/checks/lib.sh
. "$repo/dist/checks/lib.sh"
need_root "a network of its own"
command -v strace >/dev/null 2>&1 || cannot "strace is not installed"
if [ "${CTRL_EXEC_CHECK_INSIDE:-}" = "" ]; then
    unshare --net --uts --fork true 2>/dev/null || cannot "this kernel, or whatever confines us, makes no namespaces"
    CTRL_EXEC_CHECK_INSIDE=1 exec unshare --net --uts --pid --mount-proc --fork --kill-child timeout -s KILL 120 sh "$0"
fi
make_work
root=${work:?}/root bin=$work/bin
mkdir -p "$root/etc/ctrl-exec-agent" "$root/etc/ctrl-exec" "$root/var/lib/ctrl-exec-agent" "$root/var/lib/ctrl-exec" "$root/tmp" "$bin" "$work/scripts"
chmod 755 "$work" "$work/scripts"
cp "$(binary)" "$bin/ctrl-exec" && "$bin/ctrl-exec" links "$bin" >/dev/null || exit 2
export PATH="$bin:$PATH" CTRL_EXEC_ROOT="$root" CTRL_EXEC_LOG=stderr CTRL_EXEC_HOSTNAME=web1.test
hostname web1.test
ip link set lo up
printf '#!/bin/sh\nexit 0\n' >"$work/scripts/nothing"
chmod 755 "$work/scripts/nothing"
printf 'api_auth_default = "allow"\n' >"$root/etc/ctrl-exec/ctrl-exec.toml"
printf 'script_dirs = ["%s"]\n[profile.default]\nrun_as = "nobody"\n' "$work/scripts" >"$root/etc/ctrl-exec-agent/agent.toml"
printf '[scripts.nothing]\npath = "%s/nothing"\n' "$work/scripts" >"$root/etc/ctrl-exec-agent/scripts.toml"

as=
watched() { # name, words...
    _name=$1
    shift
    $as strace -f -qq -o "$work/$_name" "$@" >"$work/$_name.out" 2>&1 &
    echo $! >"$work/$_name.pid"
}
called() { sed -n 's/^[0-9]* *\([a-z_0-9]*\)(.*/\1/p' "$work/$1" | sort -u; }
# What a unit allows: the lines of its filter, sets within sets, and what begins with ~ taken away.
allowed() { # unit
    python3 - "$repo/init/$1" <<'END'
import subprocess, sys
def members(name, seen=()):
    if not name.startswith("@"):
        return {name}
    text = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", name], capture_output=True, text=True, check=True).stdout
    found = set()
    for line in text.splitlines()[1:]:
        word = line.strip()
        if word and not word.startswith("#") and word not in seen:
            found |= members(word, seen + (name,))
    return found
have = set()
for line in open(sys.argv[1]):
    if line.startswith("SystemCallFilter="):
        words = line.split("=", 1)[1].strip()
        away = words.startswith("~")
        for word in words.lstrip("~").split():
            have = have - members(word) if away else have | members(word)
# Allowed always, so that a process can be started and ended.
print("\n".join(sorted(have | members("@default") | {"execve", "exit", "exit_group", "rt_sigreturn"})))
END
}
inside() { # name unit
    allowed "$2" >"$work/allowed"
    called "$1" >"$work/called"
    expect "$1: something was seen" test "$(wc -l <"$work/called")" -gt 20
    expect "$1: the filter is known" test "$(wc -l <"$work/allowed")" -gt 100
    same "$1: every call is in the filter of $2" "" "$(comm -13 "$work/allowed" "$work/called" | tr '\n' ' ')"
}

{ ced setup-ca && ced setup-ctrl-exec --yes && ced pairing-mode start; } >"$work/said" 2>&1 || cat "$work/said"
id=$(cea request-pairing --background --dispatcher 127.0.0.1 --lookup-by ip --timeout 60 --yes 2>/dev/null)
expect "approve" ced approve "$id"
expect "paired" within 20 cea paired
ced pairing-mode stop >/dev/null 2>&1

# As the unit does: not root, who would call more.
chgrp -R 12345 "$root/etc/ctrl-exec-agent"
chown -R 12345:12345 "$root/var/lib/ctrl-exec-agent"
chmod 750 "$root/etc/ctrl-exec-agent"
touch "$work/agent" && chown 12345 "$work/agent"
as="setpriv --reuid 12345 --regid 12345 --clear-groups"
watched agent cea serve
as=
pings() { ced ping web1.test | grep -q -E '^web1.test +ok '; }
expect "ping" within 30 pings
expect "run" ced run web1.test nothing
ced run web1.test nothing --async >/dev/null 2>&1
expect "reload" pkill -HUP -P "$(cat "$work/agent.pid")"
expect "ping" within 10 pings
watched api ced-api
unset http_proxy HTTP_PROXY
health() { printf "GET /health HTTP/1.0\r\n\r\n" | busybox nc -w 5 127.0.0.1 7445 | grep -q "^HTTP.* 200"; }
expect "the API answers" within 30 health
asks() {
    printf 'POST /ping HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 23\r\n\r\n{"hosts":["web1.test"]}' | busybox nc -w 20 127.0.0.1 7445 | grep -q '^HTTP.* 200'
}
expect "and asks the agent" asks
expect "reload" pkill -HUP -P "$(cat "$work/api.pid")"
watched maintenance ced maintain
wait "$(cat "$work/maintenance.pid")"
watched renew cea promote-cert
wait "$(cat "$work/renew.pid")"
sleep 1
for pid in "$(cat "$work/agent.pid")" "$(cat "$work/api.pid")"; do pkill -TERM -P "$pid"; done
wait "$(cat "$work/agent.pid")" "$(cat "$work/api.pid")"
inside agent ctrl-exec-agent.service
inside api ctrl-exec-api.service
inside maintenance ctrl-exec-maintenance.service
allowed ctrl-exec-agent-renew.service >"$work/allowed"
called renew >"$work/called"
same "renew: every call is in the filter" "" "$(comm -13 "$work/allowed" "$work/called" | tr '\n' ' ')"
finish
