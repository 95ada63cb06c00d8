#!/bin/sh
# Installs what building and testing need and what is missing, on Debian and Alpine. As root it installs; otherwise it prints the
# one command to run. Does nothing when everything is there.
set -eu

need_static=${1:-}
missing=""
want() { # command package...
    command -v "$1" >/dev/null 2>&1 || { shift; missing="$missing $*"; }
}

run_as_root() {
    if [ "$(id -u)" = 0 ]; then
        sh -c "$1"
    else
        echo "Something is missing. Run this once, then try again:" >&2
        echo "  sudo sh -c '$1'" >&2
        exit 1
    fi
}

# A distribution's compiler counts only if it is new enough (Cargo.toml: rust-version).
new_enough() {
    version=$("$1" --version 2>/dev/null | awk '{print $2}')
    [ -n "$version" ] || return 1
    major=${version%%.*} rest=${version#*.} minor=${rest%%.*}
    [ "$major" -gt 1 ] || [ "$minor" -ge 89 ]
}
have_rust=no
for cargo in cargo "${HOME:-/root}/.cargo/bin/cargo" /usr/bin/cargo; do
    if new_enough "$cargo"; then have_rust=yes; break; fi
done

if [ -f /etc/alpine-release ]; then
    [ "$have_rust" = yes ] || missing="$missing rust cargo"
    want cc gcc musl-dev
    want make make
    want openssl openssl
    want python3 python3
    want ip iproute2
    want file file
    want setpriv setpriv
    want bash bash
    want groff groff
    want prlimit util-linux-misc
    want bwrap bubblewrap
    [ -z "$missing" ] || run_as_root "apk add --no-cache$missing"
elif [ -f /etc/debian_version ]; then
    want cc gcc libc6-dev
    want make make
    want openssl openssl
    want python3 python3
    # make api-fuzz makes an environment of its own.
    python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
    want ip iproute2
    want file file
    want unshare util-linux
    want setpriv util-linux
    # Who reads the manual pages.
    want groff groff-base
    want bwrap bubblewrap
    [ "$have_rust" = yes ] || missing="$missing rustc-web cargo-web"
    # Only this way keeps the bounds of size.sh; whoever is not root builds with what is there.
    if [ "$need_static" = static ] && [ "$(id -u)" = 0 ] && ! sh dist/static.sh --smallest; then
        apt-get update -q >/dev/null 2>&1 || true
        if apt-cache show rust-web-src >/dev/null 2>&1; then
            missing="$missing rustc-web cargo-web rust-web-src python3-venv"
        fi
    fi
    # Without it what is made for routers becomes 4 % larger (dist/linker.sh).
    if [ "$need_static" = static ] && [ "$(id -u)" = 0 ] && ! sh dist/static.sh --linker; then
        apt-get update -q >/dev/null 2>&1 || true
        ! apt-cache show lld-22 >/dev/null 2>&1 || missing="$missing lld-22"
    fi
    if ! sh dist/static.sh --can-build; then
        if command -v rustup >/dev/null 2>&1 && rustup target add "$(uname -m)-unknown-linux-musl" >/dev/null 2>&1; then
            want musl-gcc musl-tools
        else
            missing="$missing rustc-web cargo-web rust-web-src python3-venv"
        fi
    fi
    [ -z "$missing" ] || run_as_root "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends$missing"
    [ "$need_static" != static ] || sh dist/static.sh --tools
    # For routers with a MIPS processor: what makes their binary a quarter smaller (dist/mips16.py), of the version of LLVM that the compiler has.
    if [ "$need_static" = static ] && [ "${ARCH:-}" = mipsel ] && [ "$(id -u)" = 0 ] && ! sh dist/static.sh --mips16; then
        llvm=llvm-$(/usr/bin/rustc -vV 2>/dev/null | sed -n 's/^LLVM version: \([0-9]*\)\..*/\1/p')
        apt-get update -q >/dev/null 2>&1 || true
        if apt-cache show "$llvm" >/dev/null 2>&1 && apt-cache show binutils-mipsel-linux-gnu >/dev/null 2>&1; then
            DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$llvm" binutils-mipsel-linux-gnu
        fi
    fi
else
    echo "This is neither Debian nor Alpine. Needed: Rust 1.89 or newer with the musl target, a C compiler, make, openssl, python3, ip, file." >&2
    [ "$have_rust" = yes ] || exit 1
fi
