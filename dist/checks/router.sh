#!/bin/sh
# A simulated OpenWrt router: a root that cannot be written with an overlay on top ("flash"), /var on a RAM disk, a stand-in for procd. The
# program is installed as a user does it, paired with a dispatcher, rebooted (overlay kept, RAM disk lost), and pinged for a simulated day
# while inotify looks at everything that is written. Then its firmware is replaced (only what sysupgrade keeps is left), and the program is
# installed again.
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
mkdir rom rom/mnt rom/.old upper workdir merged mnt mnt/control
make_root rom openwrt || exit 2
# Services are started and ended, too.
: >rom/etc/procd-starts
# The dispatcher's programs are not the router's either.
mkdir -p mnt/control/etc mnt/control/bin
cp rom/checks/ctrl-exec mnt/control/bin/ctrl-exec
ln -s ctrl-exec mnt/control/bin/ced

# boot PHASE [SECONDS]: what is written outside of /tmp goes to the flash and stays; everything else ends with it. The day is watched from
# outside of the host: at the flash itself, and at what its programs see as /etc and /var, because a change of what is in a file is told of
# only where the file was opened.
boot() {
    echo "-- $1"
    timeout -s KILL "${2:-100}" unshare --mount --pid --net --uts --fork --kill-child sh -c "
        mount -t overlay -o lowerdir='$work/rom',upperdir='$work/upper',workdir='$work/workdir' router '$work/merged' &&
        mount -t tmpfs -o mode=1777 tmp '$work/merged/tmp' &&
        mount --bind '$work/mnt' '$work/merged/mnt' && mount -t tmpfs -o mode=0755 dev '$work/merged/dev' || exit
        if [ '$1' = day ] || [ '$1' = night ]; then
            /usr/bin/python3 -I '$repo/dist/checks/watch.py' '$work/mnt/$1' flash='$work/upper' root='$work/merged' var='$work/merged/tmp' &
            # It has read all that it needs before the root changes.
            for _ in 1 2 3 4 5 6 7 8 9 10; do grep -q ready '$work/mnt/$1' 2>/dev/null || sleep 1; done
        fi
        exec sh '$repo/dist/checks/enter.sh' '$work/merged' /checks/router-inside.sh $1" >said 2>&1 </dev/null
    _status=$?
    cat said
    passed=$((passed + $(grep -c '^ok ' said)))
    failed=$((failed + $(grep -c '^FAIL ' said)))
    expect "$1: came to its end" test "$_status" = 0
}

# What the flash holds, with everything that a write changes.
flash() { (cd upper && find . -printf '%p %y %i %s %m %U:%G %T@ %C@\n' | sort); }

boot install
expect "the program is on the flash" test -x upper/usr/bin/ctrl-exec
boot pair
expect "state is on the flash" test -s upper/etc/ctrl-exec-agent/state/ctrl-exec-dispatchers
expect "nothing was put where a reboot loses it" test ! -e upper/var
same "the kernel's /run is not on the flash" "" "$(find upper/run -type f 2>/dev/null)"

boot run
before=$(flash)
boot day 240
after=$(flash)
# Between the two marks that the host itself has set: counted by inotify. Then by comparison, which sees what inotify cannot (mapped memory).
day() { sed -n '/ CREATE .*\/mark-dawn$/,/ CREATE .*\/mark-dusk$/p' mnt/day | grep "^$1 " | grep -v '/mark-d[a-z]*$'; }
awk '!/^ready$/ { n[$1] += 1 } END { for (name in n) print "note: with start and end " n[name] " writes on " name }' mnt/day
expect "inotify lost nothing" not grep -e OVERFLOW -e UNWATCHED mnt/day
same "both marks were seen" 2 "$(grep -c '^var CREATE /mark-\(dawn\|dusk\)$' mnt/day)"
same "inotify: nothing on the flash was written in a day of pings" "" "$(day flash)"
same "inotify: nothing below /etc, /usr and elsewhere" "" "$(day root)"
same "inotify: nothing below /var" "" "$(day var)"
same "no file on the flash differs after a day of pings" "$before" "$after"
# Both must be able to find something.
boot night
for what in 'flash CREATE /etc/written' 'root CREATE /etc/written' 'root MODIFY /etc/written' 'flash ATTRIB /etc/ctrl-exec-agent/agent.key' 'root ATTRIB /etc/ctrl-exec-agent/agent.key' 'var CREATE /lib/written' 'var MODIFY /lib/written'; do
    expect "a single write is counted: $what" grep -q -x "$what" mnt/night
done
same "and makes a difference" "./etc/ctrl-exec-agent/agent.key" "$(printf '%s\n%s\n' "$after" "$(flash)" | sort | uniq -u | sed 's/ .*//' | grep agent.key | uniq)"

# Another firmware: only what is on the lists of the packages that are installed.
(cd upper && cat ../rom/lib/upgrade/keep.d/* lib/upgrade/keep.d/* | sed -e '/^#/d' -e 's,^/,,' | while read -r kept; do [ ! -e "$kept" ] || echo "$kept"; done >../list && tar -c -f ../kept.tar -T ../list)
rm -r upper workdir
mkdir upper workdir
tar -x -p -f kept.tar -C upper
expect "the program is gone with the old firmware" test ! -e upper/usr/bin/ctrl-exec
boot reinstall
boot run
boot uninstall
finish
