#!/bin/sh
# The procd scripts under busybox ash, with stand-ins for rc.common, procd and uci, but with the real program and a real pairing, in a small
# root and in namespaces of their own.
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
make_root "$root"
# As on OpenWrt: /var is the RAM disk.
rm -r "${root:?}/var"
ln -s tmp "$root/var"
install_by_hand "$root" /var/run/ctrl-exec-agent/exec.sock || exit 2
mkdir -p "$root/etc/init.d" "$root/etc/uci-defaults" "$root/etc/hotplug.d/ntp" "$root/lib/upgrade/keep.d" "$root/checks"
for name in agent exec api maintenance; do cp "$repo/procd/ctrl-exec-$name" "$root/etc/init.d/"; done
cp "$repo/procd/uci-defaults/99-ctrl-exec-firewall" "$root/etc/uci-defaults/"
cp "$repo/procd/hotplug-ntp/90-ctrl-exec" "$root/etc/hotplug.d/ntp/"
cp "$repo/procd/keep.d/ctrl-exec" "$root/lib/upgrade/keep.d/"
cp "$repo"/dist/checks/*.sh "$repo/procd/ctrl-exec.config" "$root/checks/"
cp "$repo/dist/checks/uci-stub.sh" "$root/sbin/uci"
printf '#!/bin/sh\necho "$*" >>/tmp/ubus\n' >"$root/sbin/ubus"
chmod 755 "$root/sbin/uci" "$root/sbin/ubus"
unshare --mount --pid --net --uts --fork --kill-child sh -c "
    mount -t proc proc '$root/proc' && mount -t tmpfs -o mode=1777 tmp '$root/tmp' &&
    exec chroot '$root' /bin/busybox timeout -s KILL 120 /bin/sh /checks/procd-inside.sh" >"$work/said" 2>&1 </dev/null
status=$?
cat "$work/said"
passed=$(grep -c '^ok ' "$work/said")
failed=$(grep -c '^FAIL ' "$work/said")
expect "came to its end" test "$status" = 0
finish
