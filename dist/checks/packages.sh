#!/bin/sh
# Fetches what the checks need and Debian has. OpenRC cannot be installed beside another init system: its packages are only unpacked.
#
#   packages.sh               installs missing tools (as root; otherwise says what to do)
#   packages.sh archive       prints the address of the Debian archive that this machine uses
#   packages.sh root SUITE    prints a folder with OpenRC of that suite and the libraries it needs, fetched once
set -eu
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ctrl-exec-checks

[ -f /etc/debian_version ] || { echo "CANNOT: the tools for these checks come from Debian's archive, and this is not Debian" >&2; exit 2; }

# The archive that this machine uses itself.
archive() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        sed -n -e 's/^URIs: *\([^ ]*\/debian\)\/* *$/\1/p' -e 's/^deb \(\[[^]]*\] \)*\([^ ]*\/debian\)\/* .*/\2/p' | head -n 1
}

if [ "${1:-}" = archive ]; then
    archive
    exit
fi

if [ "${1:-}" = root ]; then
    suite=$2
    dir=$cache/openrc-$suite
    if [ ! -x "$dir/root/sbin/openrc-run" ]; then
        mirror=$(archive)
        [ -n "$mirror" ] || { echo "CANNOT: no Debian archive is configured on this machine" >&2; exit 2; }
        rm -rf "$dir"
        mkdir -p "$dir/lists/partial" "$dir/archives/partial" "$dir/debs" "$dir/new/usr/bin" "$dir/new/usr/sbin" "$dir/new/usr/lib" "$dir/new/usr/lib64"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$dir/sources.list"
        options="-o Dir::Etc::sourcelist=$dir/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::Lists=$dir/lists -o Dir::State::status=$dir/none -o Dir::Cache=$dir -o APT::Sandbox::User=root -o Acquire::Languages=none"
        : >"$dir/none"
        # shellcheck disable=SC2086
        apt-get $options update -q >/dev/null
        # What OpenRC's programs are linked with. Names differ between suites; those that a suite does not have are not needed there.
        for package in openrc libeinfo1 librc1 librc1t64 libc6 libpam0g libpam-modules libselinux1 libaudit1 libcap-ng0 libpcre2-8-0 libcap2; do
            # shellcheck disable=SC2086
            (cd "$dir/debs" && apt-get $options download -q "$package" >/dev/null 2>&1) || true
        done
        for name in bin sbin lib lib64; do ln -s "usr/$name" "$dir/new/$name"; done
        for deb in "$dir"/debs/*.deb; do
            dpkg-deb --fsys-tarfile "$deb" | tar -C "$dir/new" -x --keep-directory-symlink --exclude ./usr/share
        done
        rm -rf "$dir/lists" "$dir/archives" "$dir/debs" "$dir"/*.bin
        [ -x "$dir/new/sbin/openrc-run" ] || { echo "CANNOT: Debian $suite has no OpenRC, or it cannot be fetched" >&2; exit 2; }
        mv "$dir/new" "$dir/root"
    fi
    echo "$dir/root"
    exit 0
fi

missing=""
want() { # command package
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
want systemd-analyze systemd
want systemd-sysusers systemd
want systemd-tmpfiles systemd
want busybox busybox-static
want shellcheck shellcheck
want dash dash
want unshare util-linux
want python3 python3
want strace strace
want pkill procps
want ip iproute2
want hostname hostname
want openssl openssl
want git git
# For the packages: who signs, lints and installs them.
want minisign minisign
want lintian lintian
want debootstrap debootstrap
# Linked dynamically it does not run in a root of its own.
if command -v busybox >/dev/null 2>&1 && ! ldd "$(command -v busybox)" 2>&1 | grep -q 'not a dynamic'; then missing="$missing busybox-static"; fi
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "CANNOT: missing:$missing (install as root)" >&2; exit 2; }
echo "installing$missing"
wait=-oDPkg::Lock::Timeout=120
apt-get "$wait" update -q >/dev/null
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get "$wait" install -y -q --no-install-recommends $missing >/dev/null
