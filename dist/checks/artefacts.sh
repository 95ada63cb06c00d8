#!/bin/sh
# The packages that `make dist` has made: contents, modes, owners, metadata, scripts, lintian, images, and that a second build gives the same bytes.
#   artefacts.sh [DIR]    DIR: where they are (default target/dist/packages); the binaries lie in target/dist
# Needs root (package scripts run in a root of their own, images are started), minisign, lintian and a static busybox; as root it installs them.
set -eu
cd "$(dirname "$0")/../.."
[ "${1:-}" != --full ] || shift

packages=${1:-target/dist/packages}
binaries=target/dist
[ -d "$packages" ] || { echo "there is no $packages: run 'make dist' first" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "artefacts.sh needs root: it runs package scripts in a root of their own." >&2; exit 1; }
missing=
for tool in minisign lintian busybox dpkg-deb git; do
    command -v $tool >/dev/null 2>&1 || missing="$missing $(echo $tool | sed 's/^busybox$/busybox-static/; s/^dpkg-deb$/dpkg/')"
done
if [ -n "$missing" ]; then
    apt-get update -q >/dev/null
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >/dev/null
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

CTRL_EXEC_PACKAGES=$(cd "$packages" && pwd) CTRL_EXEC_BINARIES=$(cd "$binaries" && pwd)
export CTRL_EXEC_PACKAGES CTRL_EXEC_BINARIES PYTHONDONTWRITEBYTECODE=1
for suite in units mips16 packages recipes scripts images; do
    printf '\n== tests: %s\n' "$suite"
    python3 "dist/package/tests/test_$suite.py"
done

printf '\n== scripts are POSIX shell\n'
for script in dist/checks/*.sh dist/package/scripts/*/*; do
    sh -n "$script" || { echo "$script" >&2; exit 1; }
done
if command -v shellcheck >/dev/null 2>&1; then
    # Words between @ are lists that the builder puts in.
    for script in dist/checks/*.sh dist/package/scripts/*/*; do shellcheck -s sh -e SC1091,SC2034,SC2043 "$script"; done
fi

printf '\n== lintian\n'
# What is not made in this build cannot be missed: pages come from another step.
absent=$([ -d target/dist/share/man ] || echo "--suppress-tags no-manual-page")
# shellcheck disable=SC2086
lintian --fail-on error,warning --allow-root $absent "$packages"/debian/*.deb
printf 'no errors, no warnings\n'

printf '\n== a second build, in another directory and under another name, gives the same bytes\n'
mkdir "$work/elsewhere" "$work/binaries"
# What is not committed is built too: the first build has seen it.
git ls-files --cached --others --exclude-standard >"$work/list"
tar -cf - -T "$work/list" | tar -C "$work/elsewhere" -xf -
cp "$binaries"/ctrl-exec-* "$work/binaries/"
touch "$work/binaries"/*
if [ -d target/dist/share ]; then mkdir -p "$work/elsewhere/target/dist" && cp -r target/dist/share "$work/elsewhere/target/dist/"; fi
# The time of the first build, whatever has been committed since.
epoch=$(sed -n 's/^trusted comment: timestamp:\([0-9]*\).*/\1/p' "$packages"/oci/*.oci.tar.minisig)
key=${CTRL_EXEC_MINISIGN_KEY:-$PWD/target/dist-key/throwaway.key}
(
    cd "$work/elsewhere"
    umask 077
    # shellcheck disable=SC2016
    SOURCE_DATE_EPOCH=$epoch CTRL_EXEC_MINISIGN_KEY=$key TZ=Pacific/Chatham LC_ALL=C HOME=$HOME \
        unshare --uts sh -c 'hostname elsewhere && exec python3 dist/package/main.py --partial --binaries "$1" --out "$2"' sh "$work/binaries" "$work/again" >/dev/null
)
(cd "$packages" && find . -type f | sort) >"$work/first"
(cd "$work/again" && find . -type f | sort) >"$work/second"
cmp "$work/first" "$work/second"
while IFS= read -r file; do cmp "$packages/$file" "$work/again/$file"; done <"$work/first"
printf '%s files, all the same\n' "$(wc -l <"$work/first")"
