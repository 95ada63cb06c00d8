#!/bin/sh
# `ctrl-exec install` on a simulated Alpine, and the OpenRC scripts that it puts there, under a real OpenRC: unpacked into a small root with
# busybox as its shell, in namespaces of its own for mounts, processes, names and network. An agent and its executor are paired with a
# dispatcher on the same host, over loopback.
#
#   openrc.sh [--full]     OpenRC of this Debian; --full: also the newest one, which waits for READY
set -u
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=dist/checks/lib.sh
. "$repo/dist/checks/lib.sh"
# shellcheck source=dist/checks/host.sh
. "$repo/dist/checks/host.sh"
need_root "namespaces and a root of its own"
unshare --mount --pid --net --uts --fork true 2>/dev/null || cannot "this kernel, or whatever confines us, makes no namespaces"
make_work
codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
suites=${OPENRC_SUITES:-$codename}
[ "${1:-}" != --full ] || [ -n "${OPENRC_SUITES:-}" ] || suites="$suites sid"

for suite in $suites; do
    packages=$(sh "$repo/dist/checks/packages.sh" root "$suite") || exit 2
    root=${work:?}/$suite
    mkdir -p "$root"
    cp -a "$packages/." "$root/"
    make_root "$root" alpine || exit 2
    echo "-- OpenRC of Debian $suite"
    timeout -s KILL 240 unshare --mount --pid --net --uts --fork --kill-child sh -c "
        mount --bind '$root' '$root' && mount -t tmpfs -o mode=0755 run '$root/run' &&
        exec sh '$repo/dist/checks/enter.sh' '$root' /checks/openrc-inside.sh" >"$work/said" 2>&1 </dev/null
    status=$?
    cat "$work/said"
    passed=$((passed + $(grep -c '^ok ' "$work/said")))
    failed=$((failed + $(grep -c '^FAIL ' "$work/said")))
    expect "$suite: came to its end" test "$status" = 0
done
finish
