#!/bin/sh
# The Debian packages in a Debian of their own (debootstrap): installed, upgraded from a simulated 0.12.3 and back, removed, purged.
#   deb.sh [DIR]    DIR: where `make dist` has put its packages (default target/dist/packages)
# Needs root, debootstrap, openssl and a Debian mirror (DEBIAN_MIRROR, else the one of this machine). Mounts and processes live in a namespace that ends with the script.
set -eu
cd "$(dirname "$0")/../.."
[ "${1:-}" != --full ] || shift

if [ "${1:-}" != --inside ]; then
    [ "$(id -u)" = 0 ] || { echo "deb.sh needs root: it makes a chroot." >&2; exit 1; }
    command -v debootstrap >/dev/null 2>&1 || {
        apt-get update -q >/dev/null
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends debootstrap openssl >/dev/null
    }
    packages=$(cd "${1:-target/dist/packages}/debian" && pwd)
    work=$(mktemp -d)
    trap 'rm -rf --one-file-system "$work"' EXIT
    trap 'exit 1' INT TERM HUP
    unshare --mount --pid --fork --kill-child sh dist/checks/deb.sh --inside "$packages" "$work"
    exit
fi

packages=$2 work=$3
host=$(dpkg --print-architecture)
mirror=${DEBIAN_MIRROR:-$(sh dist/checks/packages.sh archive)}
mirror=${mirror:-http://deb.debian.org/debian}
root=$work/root
checked=0

say() { printf '\n== %s\n' "$*"; }
fail() {
    echo "FAILED: $*" >&2
    exit 1
}
ok() { checked=$((checked + 1)); }
inside() { chroot "$root" env LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
# As a person would: all files, in the order of their names.
# shellcheck disable=SC2086
dpkg_all() { inside dpkg -i $new; }
# owner:group mode of a path must be so
is() { # path, owner:group, mode
    found=$(inside stat -c '%U:%G %a' "$1") || fail "$1 is not there"
    [ "$found" = "$2 $3" ] || fail "$1 is $found, should be $2 $3"
    ok
}
gone() {
    for path; do
        if [ -e "$root$path" ] || [ -L "$root$path" ]; then fail "$path is still there"; fi
        ok
    done
}
enabled() { [ -L "$root/etc/systemd/system/$1" ] || fail "$1 is not enabled"; ok; }
not_enabled() { [ ! -L "$root/etc/systemd/system/$1" ] || fail "$1 is enabled"; ok; }
# Everything but what every package leaves: logs, dpkg's own books, backups of the account files, caches.
snapshot() {
    (cd "$root" && find . -xdev \( -path ./proc -o -path ./dev -o -path ./new -o -path ./old -o -path ./var/log -o -path ./var/lib/dpkg -o -path ./var/lib/apt \
        -o -path ./var/cache -o -path ./tmp -o -path ./run \) -prune -o ! -type d ! -path './etc/*-' ! -path './etc/.pwd.lock' -print -o -type d -print | sort)
    cat "$root/etc/passwd" "$root/etc/group"
}

say "a Debian of its own"
# Made once: it takes minutes, and is the same every time.
base=target/dist-check/debian-bookworm.tar
if [ ! -s "$base" ]; then
    debootstrap --variant=minbase --include=adduser bookworm "$root" "$mirror" >"$work/debootstrap.log" 2>&1 || {
        tail -n 20 "$work/debootstrap.log" >&2
        fail "debootstrap"
    }
    rm -rf "$root"/var/cache/apt/archives/*.deb
    mkdir -p target/dist-check
    tar -C "$root" --one-file-system --numeric-owner -cf "$base.new" .
    mv "$base.new" "$base"
else
    mkdir "$root"
    tar -C "$root" --numeric-owner -xf "$base"
fi
mount -t proc proc "$root/proc"
mkdir "$root/new" "$root/old"
cp "$packages"/*_"$host".deb "$root/new/"
new=$(cd "$root" && find new -name '*.deb' | sort | sed 's,^,/,')
[ "$(echo "$new" | wc -l)" = 3 ] || fail "three packages for $host should be in $packages"
snapshot >"$work/before"

layout() { # mode of the folder of scripts: that of a host of 0.12.3 stays
    is /etc/ctrl-exec-agent root:ctrl-exec-agent 750
    is /var/lib/ctrl-exec-agent ctrl-exec-agent:ctrl-exec-agent 750
    is /var/lib/ctrl-exec-agent/runs ctrl-exec-agent:ctrl-exec-agent 750
    is /opt/ctrl-exec-scripts root:ctrl-exec-agent "${1:-755}"
    is /etc/ctrl-exec root:ctrl-exec 2750
    is /var/lib/ctrl-exec root:ctrl-exec 2770
    for name in agents locks runs; do is /var/lib/ctrl-exec/$name root:ctrl-exec 2770; done
    is /var/lib/ctrl-exec/pairing root:root 700
    is /usr/bin/ctrl-exec root:root 755
    for name in /usr/bin/ced /usr/bin/cea /usr/sbin/ctrl-exec-exec /usr/bin/ctrl-exec-api; do
        inside "$name" --version 2>&1 | grep -q '1\.' || fail "$name does not start"
        ok
    done
}
accounts() {
    for name in ctrl-exec-agent ctrl-exec; do
        inside getent passwd "$name" | grep -q ":/nonexistent:/usr/sbin/nologin$" || fail "account $name: $(inside getent passwd "$name")"
        [ "$(inside id -gn "$name")" = "$name" ] || fail "group of $name"
        ok
    done
}

say "first installation, accounts by adduser"
[ ! -e "$root/usr/bin/systemd-sysusers" ] || fail "the fallback would not be tried"
dpkg_all >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -i"; }
accounts
layout
is /etc/ctrl-exec-agent/agent.toml root:ctrl-exec-agent 640
is /etc/ctrl-exec-agent/scripts.toml root:ctrl-exec-agent 640
is /etc/ctrl-exec/ctrl-exec.toml root:ctrl-exec 640
for which in agent scripts dispatcher; do inside ctrl-exec config check $which >/dev/null 2>&1 || fail "the first configuration of $which is not valid"; ok; done
enabled multi-user.target.wants/ctrl-exec-exec.service
enabled multi-user.target.wants/ctrl-exec-agent.service
enabled timers.target.wants/ctrl-exec-maintenance.timer
enabled timers.target.wants/ctrl-exec-agent-renew.timer
not_enabled multi-user.target.wants/ctrl-exec-api.service

say "again: nothing changes, and what the administrator has switched off stays off"
echo '# mine' >>"$root/etc/ctrl-exec-agent/agent.toml"
rm "$root/etc/ctrl-exec/ctrl-exec.toml" "$root/etc/systemd/system/multi-user.target.wants/ctrl-exec-agent.service"
echo 'cert = "/etc/ctrl-exec/dispatcher.crt"' >"$root/etc/ctrl-exec/ctrl-exec.conf"
dpkg_all >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -i"; }
grep -q '# mine' "$root/etc/ctrl-exec-agent/agent.toml" || fail "agent.toml was overwritten"
gone /etc/ctrl-exec/ctrl-exec.toml
not_enabled multi-user.target.wants/ctrl-exec-agent.service
layout

say "removed: configuration and state stay"
inside dpkg -r ctrl-exec-agent ctrl-exec-dispatcher ctrl-exec-runtime >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -r"; }
gone /usr/bin/ctrl-exec /usr/bin/ced /usr/sbin/ctrl-exec-exec /usr/lib/systemd/system/ctrl-exec-agent.service
is /etc/ctrl-exec-agent/agent.toml root:ctrl-exec-agent 640
is /var/lib/ctrl-exec/agents root:ctrl-exec 2770

say "purged: nothing is left"
inside dpkg -P ctrl-exec-agent ctrl-exec-dispatcher ctrl-exec-runtime >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -P"; }
snapshot >"$work/after"
diff "$work/before" "$work/after" >"$work/diff" || { cat "$work/diff" >&2; fail "something is left, or is missing"; }
ok

# ---- A host of 0.12.3, with what its packages ship and what pairing makes.

old_package() { # name, depends, then paths of stub programs
    name=$1 depends=$2
    shift 2
    tree=$work/old/$name
    mkdir -p "$tree/DEBIAN"
    printf 'Package: %s\nVersion: 0.12.3-1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDepends: %s\nSection: admin\nPriority: optional\nDescription: stands for the Perl release\n' \
        "$name" "$depends" >"$tree/DEBIAN/control"
    for path; do
        mkdir -p "$tree/$(dirname "$path")"
        case $path in
        *.service | *.timer) printf '[Unit]\nDescription=0.12.3\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n' >"$tree/$path" ;;
        *.conf | *.json | *.pm) echo '# 0.12.3' >"$tree/$path" ;;
        *)
            printf '#!/usr/bin/perl\nprint "0.12.3\\n";\n' >"$tree/$path"
            chmod 755 "$tree/$path"
            ;;
        esac
    done
    dpkg-deb --root-owner-group -Zgzip -b "$tree" "$root/old/${name}_0.12.3-1_all.deb" >/dev/null
}

say "packages of 0.12.3"
# As debhelper of that time did, the units lie below /lib; the new ones lie below /usr/lib, which is the same directory.
old_package ctrl-exec-common perl-base usr/share/perl5/Exec/Wire.pm usr/share/perl5/Exec/openapi.json usr/share/ctrl-exec/sbom-common.json
mkdir -p "$work/old/ctrl-exec-dispatcher/usr/bin" "$work/old/ctrl-exec-agent/usr/bin"
ln -s ctrl-exec-agent "$work/old/ctrl-exec-agent/usr/bin/cea"
ln -s ctrl-exec-dispatcher "$work/old/ctrl-exec-dispatcher/usr/bin/ced"
old_package ctrl-exec-agent "ctrl-exec-common (= 0.12.3-1), adduser" usr/bin/ctrl-exec-agent usr/sbin/ctrl-exec-exec lib/systemd/system/ctrl-exec-agent.service \
    lib/systemd/system/ctrl-exec-exec.service lib/systemd/system/ctrl-exec-agent-renew.service lib/systemd/system/ctrl-exec-agent-renew.timer \
    usr/share/ctrl-exec/examples/agent.conf usr/share/ctrl-exec/examples/scripts.conf
old_package ctrl-exec-dispatcher "ctrl-exec-common (= 0.12.3-1), adduser" usr/bin/ctrl-exec-dispatcher usr/bin/ctrl-exec-api lib/systemd/system/ctrl-exec-api.service \
    lib/systemd/system/ctrl-exec-maintenance.service lib/systemd/system/ctrl-exec-maintenance.timer usr/share/ctrl-exec/examples/ctrl-exec.conf

# Certificates as that release made them: RSA, X.509 v1, no names but the CN.
mkdir "$work/pki"
(
    cd "$work/pki"
    openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 3650 -subj /CN=ca >/dev/null 2>&1
    for name in agent dispatcher; do
        openssl req -new -newkey rsa:2048 -nodes -keyout $name.key -out $name.csr -subj /CN=$name >/dev/null 2>&1
    done
    openssl x509 -req -in agent.csr -CA ca.crt -CAkey ca.key -set_serial 0x02 -days 800 -out agent.crt >/dev/null 2>&1
    openssl x509 -req -in dispatcher.csr -CA ca.crt -CAkey ca.key -set_serial 0x01 -days 800 -out dispatcher.crt >/dev/null 2>&1
)

old_host() {
    inside dpkg -i /old/ctrl-exec-common_0.12.3-1_all.deb /old/ctrl-exec-agent_0.12.3-1_all.deb /old/ctrl-exec-dispatcher_0.12.3-1_all.deb >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "0.12.3"; }
    for name in ctrl-exec-agent ctrl-exec; do
        inside addgroup --quiet --system $name
        inside adduser --quiet --system --ingroup $name --no-create-home --home /nonexistent --shell /usr/sbin/nologin $name
    done
    inside install -d -m 0750 -g ctrl-exec-agent /etc/ctrl-exec-agent /opt/ctrl-exec-scripts
    inside install -d -m 0750 -g ctrl-exec /etc/ctrl-exec
    inside install -d -m 0750 -o ctrl-exec-agent -g ctrl-exec-agent /var/lib/ctrl-exec-agent
    # As the scripts of 0.12.0 left them: without the set-gid bit.
    inside install -d -m 0770 -g ctrl-exec /var/lib/ctrl-exec/pairing /var/lib/ctrl-exec/agents /var/lib/ctrl-exec/locks /var/lib/ctrl-exec/runs
    cat >"$root/etc/ctrl-exec-agent/agent.conf" <<'END'
# the administrator's own file
port = 7443
cert = /etc/ctrl-exec-agent/agent.crt
key = /etc/ctrl-exec-agent/agent.key
ca = /etc/ctrl-exec-agent/ca.crt
script_dirs = /opt/ctrl-exec-scripts
executor_socket = /run/ctrl-exec-agent/exec.sock

[profile default]
run_as = nobody
END
    echo 'hello = /opt/ctrl-exec-scripts/hello.sh' >"$root/etc/ctrl-exec-agent/scripts.conf"
    printf '#!/bin/sh\necho hello\n' >"$root/opt/ctrl-exec-scripts/hello.sh"
    cp "$root/opt/ctrl-exec-scripts/hello.sh" "$root/opt/ctrl-exec-scripts/ctrl-exec-demonstrator.sh"
    cp "$work/pki/agent.key" "$work/pki/agent.crt" "$work/pki/ca.crt" "$root/etc/ctrl-exec-agent/"
    echo '01 dispatcher' >"$root/var/lib/ctrl-exec-agent/ctrl-exec-dispatchers"
    inside chown root:ctrl-exec-agent /etc/ctrl-exec-agent/agent.conf /etc/ctrl-exec-agent/scripts.conf /etc/ctrl-exec-agent/agent.key /etc/ctrl-exec-agent/agent.crt \
        /etc/ctrl-exec-agent/ca.crt /opt/ctrl-exec-scripts/hello.sh /opt/ctrl-exec-scripts/ctrl-exec-demonstrator.sh
    chmod 640 "$root"/etc/ctrl-exec-agent/agent.* "$root/etc/ctrl-exec-agent/scripts.conf"
    chmod 750 "$root"/opt/ctrl-exec-scripts/*.sh
    # The key has the older name, and is still root's.
    printf 'cert = /etc/ctrl-exec/ctrl-exec.crt\nkey = /etc/ctrl-exec/ctrl-exec.key\nca = /etc/ctrl-exec/ca.crt\n' >"$root/etc/ctrl-exec/ctrl-exec.conf"
    cp "$work/pki/dispatcher.key" "$root/etc/ctrl-exec/ctrl-exec.key"
    cp "$work/pki/dispatcher.crt" "$root/etc/ctrl-exec/ctrl-exec.crt"
    cp "$work/pki/ca.key" "$work/pki/ca.crt" "$root/etc/ctrl-exec/"
    echo 03 >"$root/etc/ctrl-exec/ca.serial"
    chmod 600 "$root/etc/ctrl-exec/ca.key" "$root/etc/ctrl-exec/ca.serial" "$root/etc/ctrl-exec/ctrl-exec.key"
    inside chown root:ctrl-exec /etc/ctrl-exec/ctrl-exec.conf
    chmod 640 "$root/etc/ctrl-exec/ctrl-exec.conf"
    echo '{"hostname":"agent","ip":"192.0.2.1","port":7443,"paired":"2025-01-01T00:00:00Z"}' >"$root/var/lib/ctrl-exec/agents/agent.json"
    echo '{}' >"$root/var/lib/ctrl-exec/rotation.json"
    mkdir -p "$root/etc/systemd/system/timers.target.wants"
    # Enabled by the old package; the agent because its administrator did.
    ln -sf /lib/systemd/system/ctrl-exec-agent-renew.timer "$root/etc/systemd/system/timers.target.wants/"
}
DATA="etc/ctrl-exec-agent etc/ctrl-exec var/lib/ctrl-exec-agent var/lib/ctrl-exec opt/ctrl-exec-scripts"
# shellcheck disable=SC2086
contents() { (cd "$root" && find $DATA -type f -exec sha256sum {} + | sort -k 2); }

# Stands for a running systemd: says that everything is active and enabled, and remembers what it was asked to do.
pretend_systemd() {
    mkdir -p "$root/run/systemd/system"
    cat >"$root/usr/bin/systemctl" <<'END'
#!/bin/sh
echo "$*" >>/tmp/systemctl.log
case "$*" in
*is-enabled*) echo enabled ;;
*"show"*) echo "ActiveState=active" ;;
esac
exit 0
END
    chmod 755 "$root/usr/bin/systemctl"
}
real_again() { rm -rf "$root/run/systemd" "$root/usr/bin/systemctl" "$root/tmp/systemctl.log"; }
restarts() { sed -n 's/.*\brestart \(--no-block \)\{0,1\}\(ctrl-exec-[a-z]*\)\.service.*/\2/p' "$root/tmp/systemctl.log" 2>/dev/null | tr '\n' ' '; }

say "upgrade from 0.12.3 with dpkg, services running"
old_host
contents >"$work/data"
pretend_systemd
dpkg_all >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -i over 0.12.3"; }
contents | diff "$work/data" - || fail "the upgrade has changed data of the host"
ok
[ "$(restarts)" = "ctrl-exec-exec ctrl-exec-agent ctrl-exec-api " ] || { cat "$work/log" >&2; fail "restarted: $(restarts)"; }
grep -q 'restarted ctrl-exec-agent to apply the upgrade' "$work/log" || fail "nothing is said about the restart"
accounts
layout 750
is /etc/ctrl-exec/ctrl-exec.key ctrl-exec:ctrl-exec 600
is /etc/ctrl-exec/ca.key root:root 600
is /etc/ctrl-exec-agent/agent.key root:ctrl-exec-agent 640
is /etc/ctrl-exec-agent/agent.conf root:ctrl-exec-agent 640
gone /etc/ctrl-exec-agent/agent.toml /etc/ctrl-exec-agent/scripts.toml /etc/ctrl-exec/ctrl-exec.toml /usr/share/perl5/Exec/Wire.pm
inside dpkg -s ctrl-exec-common 2>/dev/null | grep -q '^Status: .* installed' && fail "ctrl-exec-common is still installed"
for unit in ctrl-exec-agent.service ctrl-exec-exec.service ctrl-exec-api.service ctrl-exec-maintenance.timer; do
    cmp "init/$unit" "$root/usr/lib/systemd/system/$unit" || fail "$unit is not the new one"
    ok
done
enabled timers.target.wants/ctrl-exec-agent-renew.timer
inside ced list-agents | grep -q agent || fail "the registry is not read"
inside setpriv --reuid ctrl-exec-agent --regid ctrl-exec-agent --init-groups ctrl-exec-agent self-check >/dev/null 2>&1 || fail "self-check after the upgrade"
ok

say "back to 0.12.3 with apt, and forth with apt"
# The sources are the archive files alone: nothing is asked of the network.
: >"$root/etc/apt/sources.list"
inside apt-get install -y -q --allow-downgrades /old/ctrl-exec-common_0.12.3-1_all.deb /old/ctrl-exec-agent_0.12.3-1_all.deb /old/ctrl-exec-dispatcher_0.12.3-1_all.deb >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "downgrade"; }
contents | diff "$work/data" - || fail "the downgrade has changed data of the host"
for name in ctrl-exec-agent ced ctrl-exec-exec; do [ "$(inside $name)" = 0.12.3 ] || fail "$name is not the old program"; done
gone /usr/bin/ctrl-exec
ok
# shellcheck disable=SC2086
inside apt-get install -y -q $new >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "apt-get install over 0.12.3"; }
contents | diff "$work/data" - || fail "the upgrade by apt has changed data of the host"
layout 750

say "upgrade with a configuration that this version refuses: the old processes keep running"
rm -f "$root/tmp/systemctl.log"
# A script without a profile, and no profile "default": what took agents off the air at 0.12.2.
sed -i '/^\[profile default\]/,$d' "$root/etc/ctrl-exec-agent/agent.conf"
echo 'api_port = many' >>"$root/etc/ctrl-exec/ctrl-exec.conf"
dpkg_all >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -i"; }
[ -z "$(restarts)" ] || { cat "$work/log" >&2; fail "restarted in spite of errors: $(restarts)"; }
[ "$(grep -c 'NOT restarted' "$work/log")" = 2 ] || { cat "$work/log" >&2; fail "it does not say that nothing was restarted"; }
grep -q 'systemctl restart ctrl-exec-exec ctrl-exec-agent' "$work/log" || fail "it does not say how to go on"
sed -n '/NOT restarted/,$p' "$work/log"
ok
real_again

say "links that a service has put into its own directories lead nowhere"
mkdir -m 0700 "$root/tmp/victim"
ln -s /tmp/victim "$root/var/lib/ctrl-exec/new-locks"
mv "$root/var/lib/ctrl-exec/locks" "$root/var/lib/ctrl-exec/old-locks"
mv "$root/var/lib/ctrl-exec/new-locks" "$root/var/lib/ctrl-exec/locks"
rmdir "$root/var/lib/ctrl-exec-agent/runs"
ln -s /tmp/victim "$root/var/lib/ctrl-exec-agent/runs"
dpkg_all >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -i"; }
is /tmp/victim root:root 700
[ "$(grep -c 'is a link, or no directory' "$work/log")" = 2 ] || { cat "$work/log" >&2; fail "it does not say what it has left alone"; }
rm "$root/var/lib/ctrl-exec/locks" "$root/var/lib/ctrl-exec-agent/runs"
dpkg_all >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -i"; }
layout 750

say "an installation from before 0.9.0: one trusted serial becomes a map"
rm "$root/var/lib/ctrl-exec-agent/ctrl-exec-dispatchers"
echo 'AB:01' >"$root/etc/ctrl-exec-agent/ctrl-exec-serial"
dpkg_all >/dev/null 2>&1 || fail "dpkg -i"
grep -qx 'ab01 dispatcher' "$root/var/lib/ctrl-exec-agent/ctrl-exec-dispatchers" || fail "the map: $(cat "$root/var/lib/ctrl-exec-agent/ctrl-exec-dispatchers")"
is /var/lib/ctrl-exec-agent/ctrl-exec-dispatchers ctrl-exec-agent:ctrl-exec-agent 644

say "purged, with a script of the administrator's own"
inside dpkg -P ctrl-exec-agent ctrl-exec-dispatcher ctrl-exec-runtime >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -P"; }
is /opt/ctrl-exec-scripts/hello.sh root:root 750
rm -r "$root/opt/ctrl-exec-scripts"
inside dpkg -P ctrl-exec-common >/dev/null 2>&1 || true
rmdir "$root/etc/systemd/system/timers.target.wants" "$root/etc/systemd/system" "$root/etc/systemd" 2>/dev/null || true
snapshot >"$work/after"
diff "$work/before" "$work/after" >"$work/diff" || { cat "$work/diff" >&2; fail "something is left, or is missing"; }
ok

say "accounts by sysusers.d"
echo "deb $mirror bookworm main" >"$root/etc/apt/sources.list"
inside apt-get update -q >/dev/null 2>&1 || fail "apt-get update from $mirror"
inside apt-get install -y -q --no-install-recommends systemd-standalone-sysusers >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "systemd-standalone-sysusers"; }
dpkg_all >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -i"; }
accounts
layout

printf '\n%s points checked.\n' "$checked"
