#!/bin/sh
# Boots the static binary on real kernels of several ages, in QEMU without acceleration, and runs tests/kernels/guest.sh in each: what
# a profile gives where a facility is missing, and cgroup limits with all controllers, cannot be seen on one machine alone.
#
# usage: kernels.sh BINARY [SUITE...]    suites of Debian, default: bullseye (5.10) bookworm (6.1) trixie (6.12)
set -eu
binary=$1
shift
[ $# -gt 0 ] || set -- bullseye bookworm trixie
here=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ctrl-exec-kernels
patience=300

cannot() {
    echo "kernels: $1" >&2
    # In CI nothing may be left out.
    [ -z "${CI:-}" ] || exit 1
    exit 0
}

[ "$(uname -m)" = x86_64 ] || cannot "only for x86_64 so far; left out"
[ -f /etc/debian_version ] || cannot "the kernels come from Debian's archive, and this is not Debian; left out"
missing=""
command -v qemu-system-x86_64 >/dev/null 2>&1 || missing="$missing qemu-system-x86"
command -v cpio >/dev/null 2>&1 || missing="$missing cpio"
[ -x /bin/busybox ] || [ -x /usr/bin/busybox ] || missing="$missing busybox-static"
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || cannot "missing:$missing (install as root); left out"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >/dev/null
fi
busybox=$(command -v busybox)

# The archive that this machine uses itself.
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
    sed -n -e 's/^URIs: *\([^ ]*\/debian\)\/* *$/\1/p' -e 's/^deb \(\[[^]]*\] \)*\([^ ]*\/debian\)\/* .*/\2/p' | head -n 1)
[ -n "$mirror" ] || cannot "no Debian archive is configured on this machine; left out"

fetch() { # suite: leaves its newest small kernel in the cache, prints its file
    dir=$cache/$1
    if ! ls "$dir"/boot/vmlinuz-* >/dev/null 2>&1; then
        mkdir -p "$dir/lists/partial" "$dir/archives/partial"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" >"$dir/sources.list"
        options="-o Dir::Etc::sourcelist=$dir/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::Lists=$dir/lists -o Dir::Cache=$dir -o APT::Sandbox::User=root -o Acquire::Languages=none"
        apt-get $options update -q >/dev/null
        package=$(apt-cache $options search --names-only '^linux-image-[0-9].*cloud-amd64-unsigned$' | awk '{print $1}' | sort -V | tail -n 1)
        [ -n "$package" ] || return 1
        (cd "$dir" && apt-get $options download -q "$package" >/dev/null 2>&1 && dpkg-deb -x "$package"_*.deb .)
        rm -rf "$dir/lists" "$dir/archives" "$dir"/*.bin "$dir"/*.deb "$dir/lib" "$dir/usr"
    fi
    ls "$dir"/boot/vmlinuz-* | head -n 1
}

work=$(mktemp -d "${TMPDIR:-/tmp}/ctrl-exec-kernels-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/bin" "$work/root/sbin"
cp "$busybox" "$work/root/bin/busybox"
cp "$binary" "$work/root/sbin/ctrl-exec"
cp "$here/tests/kernels/guest.sh" "$work/root/init"
chmod 755 "$work/root/init" "$work/root/sbin/ctrl-exec" "$work/root/bin/busybox"
chmod 755 "$work/root" "$work/root/bin" "$work/root/sbin"
(cd "$work/root" && find . | cpio -o -H newc -R 0:0 2>/dev/null | gzip -1) >"$work/initrd"

failed=0
for suite in "$@"; do
    kernel=$(fetch "$suite") || cannot "no kernel of $suite can be fetched; left out"
    echo "== $suite: $(basename "$kernel")"
    # Without cmpxchg16b: QEMU 7.2 emulates it with wrong flags now and then, and the memory allocator of a newer kernel then crashes.
    # Should the kernel of the guest crash all the same, that is said, and it is booted again: no program can be blamed for that.
    for attempt in 1 2 3; do
        timeout "$patience" qemu-system-x86_64 -accel tcg -cpu qemu64,-cx16 -smp 2 -m 512 -nic none -display none -no-reboot \
            -kernel "$kernel" -initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1" -serial "file:$work/serial" </dev/null >"$work/qemu" 2>&1 ||
            { cat "$work/qemu"; echo "kernels: QEMU ended badly or took longer than $patience s" >&2; failed=1; }
        grep -q 'Kernel panic' "$work/serial" || break
        echo "NOTE: the kernel of the guest crashed in the emulator (attempt $attempt)"
    done
    tr -d '\r' <"$work/serial" | sed -n '/^kernel-tests: begin/,$p' | grep -v -e '^kernel-tests: begin' -e 'reboot: '
    if ! tr -d '\r' <"$work/serial" | grep -q '^kernel-tests: [1-9][0-9]* passed, 0 failed'; then
        echo "kernels: $suite did not pass" >&2
        failed=1
    fi
done
exit "$failed"
