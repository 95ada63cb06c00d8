#!/bin/sh
# Inside new namespaces: makes ROOT the root of everything (as the executor needs it: a root that is a mount, and nothing above), then runs
# the words as the first process.
#
#   enter.sh ROOT WORD...
set -eu
root=$1
shift
mountpoint -q "$root" || mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mkdir -p "$root/.old"
cd "$root"
pivot_root . .old
# shellcheck disable=SC2016
exec /bin/busybox sh -c 'cd / && umount -l /.old && exec /bin/sh /checks/init.sh "$@"' sh "$@"
