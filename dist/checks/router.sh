#!/bin/sh
# A simulated OpenWrt router: a root that cannot be written with an overlay on top ("flash"), /var on a RAM disk, procd's scripts. It is
# paired with a dispatcher, rebooted (overlay kept, RAM disk lost), pinged for a simulated day while the flash is watched, and its firmware
# is replaced (only what sysupgrade keeps is left, then the program is put back).
set -u
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=dist/checks/lib.sh
. "$repo/dist/checks/lib.sh"
# shellcheck source=dist/checks/host.sh
. "$repo/dist/checks/host.sh"
need_root "mounts and namespaces"
unshare --mount --pid --net --uts --fork true 2>/dev/null || cannot "this kernel, or whatever confines us, makes no namespaces"
grep -q -w overlay /proc/filesystems || modprobe overlay 2>/dev/null || cannot "this kernel has no overlayfs"
make_work
cd "${work:?}" || exit 1
# rom: the firmware. upper: the flash. mnt: the other side of the network (dispatcher) and the log, which are not the router's.
mkdir rom rom/mnt rom/overlay upper workdir merged mnt
make_root rom
rm -r rom/var
ln -s tmp rom/var
mkdir -p rom/etc/init.d rom/lib/upgrade/keep.d rom/checks
cp "$repo"/dist/checks/*.sh rom/checks/

# Service files, as a package or `ctrl-exec install` brings them.
install_services() { # root
    mkdir -p "$1/etc/config" "$1/etc/init.d" "$1/lib/upgrade/keep.d"
    for _name in agent exec; do cp "$repo/procd/ctrl-exec-$_name" "$1/etc/init.d/"; done
    cp "$repo/procd/keep.d/ctrl-exec" "$1/lib/upgrade/keep.d/"
    [ -e "$1/etc/config/ctrl-exec" ] || cp "$repo/procd/ctrl-exec.config" "$1/etc/config/ctrl-exec"
}

# boot PHASE: what is written outside of /tmp goes to the flash and stays; everything else ends with it.
boot() {
    echo "-- $1"
    unshare --mount --pid --net --uts --fork --kill-child sh -c "
        mount -t overlay -o lowerdir='$work/rom',upperdir='$work/upper',workdir='$work/workdir' router '$work/merged' &&
        mount -t tmpfs -o mode=1777 tmp '$work/merged/tmp' && mount -t proc proc '$work/merged/proc' &&
        mount --bind '$work/mnt' '$work/merged/mnt' && mount -t tmpfs -o mode=0755 dev '$work/merged/dev' &&
        exec chroot '$work/merged' /bin/busybox timeout -s KILL 150 /bin/sh /checks/router-inside.sh $1" >said 2>&1 </dev/null
    _status=$?
    cat said
    passed=$((passed + $(grep -c '^ok ' said)))
    failed=$((failed + $(grep -c '^FAIL ' said)))
    expect "$1: came to its end" test "$_status" = 0
}

# What the flash holds, with everything that a write changes.
flash() { (cd upper && find . -printf '%p %y %i %s %m %U:%G %T@ %C@\n' | sort); }

# Into the overlay, by way of a mount as on the router.
with_flash() { # command...
    # shellcheck disable=SC2016
    unshare --mount sh -c '
        mount -t overlay -o "lowerdir=$1/rom,upperdir=$1/upper,workdir=$1/workdir" router "$1/merged" || exit 2
        . "$1/rom/checks/lib.sh"
        . "$1/rom/checks/host.sh"
        repo=$2 work=$1
        shift 2
        "$@"' sh "$work" "$repo" "$@"
}
expect "the program is installed" with_flash install_by_hand "$work/merged" /var/run/ctrl-exec-agent/exec.sock
install_services upper
boot pair
expect "state is on the flash" test -s upper/etc/ctrl-exec-agent/state/ctrl-exec-dispatchers
expect "nothing was put where a reboot loses it" test ! -e upper/var
same "the kernel's /run is not on the flash" "" "$(find upper/run -type f 2>/dev/null)"

boot run
before=$(flash)
boot day
after=$(flash)
same "no file on the flash was written in a day of pings" "" "$(printf '%s\n%s\n' "$before" "$after" | sort | uniq -u)"
# The comparison must be able to find something.
touch upper/etc/ctrl-exec-agent/agent.key
expect "a single touch would have been seen" not test "$(flash)" = "$after"

# Another firmware: only what is on the list, and the accounts, which the base system keeps.
# shellcheck disable=SC2046
(cd upper && tar -c -f "$work/kept.tar" $(sed -e '/^#/d' -e 's,^/,,' lib/upgrade/keep.d/ctrl-exec))
rm -r upper workdir
mkdir upper workdir
tar -x -p -f kept.tar -C upper
expect "the program is gone with the old firmware" test ! -e upper/usr/bin/ctrl-exec
expect "the program is installed again" with_flash install_by_hand "$work/merged" /var/run/ctrl-exec-agent/exec.sock
install_services upper
boot run
finish
