#!/bin/sh
# `ctrl-exec install` on a simulated OpenWrt, and the procd scripts that it puts there, under busybox ash, with stand-ins for rc.common, procd
# and uci, but with the real program and a real pairing, in a small root and in namespaces of their own.
set -u
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=dist/checks/lib.sh
. "$repo/dist/checks/lib.sh"
# shellcheck source=dist/checks/host.sh
. "$repo/dist/checks/host.sh"
need_root "namespaces and a root of its own"
unshare --mount --pid --net --uts --fork true 2>/dev/null || cannot "this kernel, or whatever confines us, makes no namespaces"
make_work
root=${work:?}/root
mkdir -p "$root"
make_root "$root" openwrt || exit 2
# Runs once and removes itself; here it is looked at several times.
cp "$repo/procd/uci-defaults/99-ctrl-exec-firewall" "$root/checks/"
timeout -s KILL 180 unshare --mount --pid --net --uts --fork --kill-child sh -c "
    mount --bind '$root' '$root' && mount -t tmpfs -o mode=1777 tmp '$root/tmp' &&
    exec sh '$repo/dist/checks/enter.sh' '$root' /checks/procd-inside.sh" >"$work/said" 2>&1 </dev/null
status=$?
cat "$work/said"
passed=$(grep -c '^ok ' "$work/said")
failed=$(grep -c '^FAIL ' "$work/said")
expect "came to its end" test "$status" = 0
finish
