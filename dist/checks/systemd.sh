#!/bin/sh
# systemd units, without systemd as the first process: what systemd itself says about them, how much of the system they can reach (compared
# with systemd-scores.txt), and what sysusers.d and tmpfiles.d make in an empty root.
set -u
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=dist/checks/lib.sh
. "$repo/dist/checks/lib.sh"
need_root "systemd-tmpfiles gives directories to users"
make_work
root=${work:?}/root

# A root with nothing but the units, the names that they start, and what of systemd's own units they refer to.
install_units() {
    mkdir -p "$root/etc/systemd/system" "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib/systemd/system" "$root/usr/share/man/man8"
    ln -s usr/bin "$root/bin"
    ln -s usr/sbin "$root/sbin"
    ln -s usr/lib "$root/lib"
    cp "$repo"/init/*.service "$repo"/init/*.timer "$repo"/init/*.socket "$root/etc/systemd/system/"
    cp /usr/lib/systemd/system/*.target /usr/lib/systemd/system/*.slice /usr/lib/systemd/system/*.socket "$root/usr/lib/systemd/system/" 2>/dev/null ||
        cp /lib/systemd/system/*.target /lib/systemd/system/*.slice /lib/systemd/system/*.socket "$root/usr/lib/systemd/system/"
    cp "$(binary)" "$root/usr/bin/ctrl-exec" || return 1
    for name in ctrl-exec-agent ctrl-exec-dispatcher ctrl-exec-api ../sbin/ctrl-exec-exec; do ln -s /usr/bin/ctrl-exec "$root/usr/bin/$name"; done
    # Programs of other packages that they start.
    for name in kill systemctl; do printf '#!/bin/sh\n' >"$root/usr/bin/$name" && chmod 755 "$root/usr/bin/$name"; done
}
install_units || exit 2
# DelegateSubgroup= is of systemd 254. An older one goes on without it, and the executor makes the group itself.
version=$(systemd-analyze --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
if [ "${version:-0}" -lt 254 ]; then
    echo "note: systemd $version does not know DelegateSubgroup=; the rest of the executor's unit is verified"
    sed -i '/^DelegateSubgroup=/d' "$root/etc/systemd/system/ctrl-exec-exec.service"
fi

# Users that the units name are looked up on this host; what is unknown here is said, and is no fault of the unit.
verify() { # unit
    said=$(systemd-analyze verify --root="$root" --man=no --recursive-errors=no "$1" 2>&1) || {
        echo "$said"
        return 1
    }
    if echo "$said" | grep -q "$(basename "$1")"; then
        echo "$said"
        return 1
    fi
}
for unit in "$repo"/init/*.service "$repo"/init/*.timer "$repo"/init/*.socket; do
    name=$(basename "$unit")
    expect "$name: systemd-analyze verify" verify "$name"
done

# verify must be able to fail, or it says nothing.
sed 's/^Restart=on-failure$/Restart=sometimes/' "$repo/init/ctrl-exec-agent.service" >"$root/etc/systemd/system/wrong.service"
expect "verify finds a wrong word" not verify wrong.service
rm "$root/etc/systemd/system/wrong.service"

# Exposure: 0 (nothing) to 100 (everything). The table holds the most that each unit may have.
score() { # unit
    systemd-analyze security --root="$root" --offline=yes --no-pager "$1" 2>/dev/null | sed -n 's/^.*Overall exposure level for .*: \([0-9]\{1,2\}\)\.\([0-9]\).*/\1\2/p' | sed 's/^0*\(.\)/\1/'
}
while read -r unit most _; do
    case $unit in '#'* | '') continue ;; esac
    found=$(score "$unit")
    expect "$unit: exposure ${found:-?} of 100, at most $most" test "${found:-999}" -le "$most"
done <"$repo/dist/checks/systemd-scores.txt"
for unit in "$repo"/init/*.service; do
    expect "$(basename "$unit"): has a line in systemd-scores.txt" grep -q "^$(basename "$unit") " "$repo/dist/checks/systemd-scores.txt"
done

# What the rest of the house relies on.
unit() { sed -n "s/^$2=//p" "$repo/init/$1"; }
for name in ctrl-exec-agent ctrl-exec-exec ctrl-exec-api; do
    same "$name: 78 is not tried again" 78 "$(unit $name.service RestartPreventExitStatus)"
    same "$name: reload is SIGHUP" "/bin/kill -HUP \$MAINPID" "$(unit $name.service ExecReload)"
    same "$name: waits for READY" notify "$(unit $name.service Type)"
done
has "the agent is ordered after the executor" "$(unit ctrl-exec-agent.service After)" ctrl-exec-exec.service
same "the executor is ordered before the agent" ctrl-exec-agent.service "$(unit ctrl-exec-exec.service Before)"
same "enabling the agent enables the executor" ctrl-exec-exec.service "$(unit ctrl-exec-agent.service Also)"
same "asynchronous runs outlive the agent" process "$(unit ctrl-exec-agent.service KillMode)"
expect "nothing starts the executor unasked" not grep -q -E '^(Wants|Requires|BindsTo)=.*ctrl-exec-exec' "$repo/init/ctrl-exec-agent.service"

# Accounts and directories (spec/operations.md 2, 3).
mkdir -p "$root/etc" "$root/var/lib" "$root/opt/ctrl-exec-scripts"
chmod 755 "$root/opt/ctrl-exec-scripts"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
expect "sysusers: a dry run says what it would do" sh -c "systemd-sysusers --root='$root' --dry-run '$repo/init/sysusers/ctrl-exec-agent.conf' '$repo/init/sysusers/ctrl-exec.conf' 2>&1 | grep -q ctrl-exec-agent"
for role in ctrl-exec-agent ctrl-exec; do
    expect "sysusers: $role" systemd-sysusers --root="$root" "$repo/init/sysusers/$role.conf"
    line=$(grep "^$role:" "$root/etc/passwd")
    same "$role: no home, no shell" "/nonexistent:/usr/sbin/nologin" "$(echo "$line" | cut -d: -f6-7)"
    same "$role: a group of its own" "$(grep "^$role:" "$root/etc/group" | cut -d: -f3)" "$(echo "$line" | cut -d: -f4)"
    expect "$role: a number for system accounts" test "$(echo "$line" | cut -d: -f3)" -lt 1000
done
expect "the two users have two numbers" test "$(grep '^ctrl-exec:' "$root/etc/passwd" | cut -d: -f3)" != "$(grep '^ctrl-exec-agent:' "$root/etc/passwd" | cut -d: -f3)"

id_of() { sed -n "s/^$1:[^:]*:\([0-9]*\):.*/\1/p" "$root/etc/$2"; }
is() { # path mode owner group
    same "tmpfiles: $1" "$2 $(id_of "$3" passwd):$(id_of "$4" group)" "$(stat -c '%a %u:%g' "$root$1")"
}
for twice in 1 2; do
    for role in ctrl-exec-agent ctrl-exec; do
        expect "tmpfiles: $role (time $twice)" systemd-tmpfiles --root="$root" --create "$repo/init/tmpfiles/$role.conf"
    done
done
is /etc/ctrl-exec-agent 750 root ctrl-exec-agent
is /var/lib/ctrl-exec-agent 750 ctrl-exec-agent ctrl-exec-agent
is /var/lib/ctrl-exec-agent/runs 750 ctrl-exec-agent ctrl-exec-agent
is /etc/ctrl-exec 2750 root ctrl-exec
is /var/lib/ctrl-exec 2770 root ctrl-exec
for dir in agents locks runs; do is "/var/lib/ctrl-exec/$dir" 2770 root ctrl-exec; done
same "the scripts' directory is left as it is" "755 0:0" "$(stat -c '%a %u:%g' "$root/opt/ctrl-exec-scripts")"
expect "the pairing queue is the program's business" test ! -e "$root/var/lib/ctrl-exec/pairing"
finish
