#!/bin/sh
# What making packages needs besides a build: Python 3.11 or newer, minisign, openssl, git, the library of Zopfli. As root it installs what is missing on Debian; otherwise it
# prints the command.
set -eu

missing=""
python3 -c 'import tomllib' 2>/dev/null || missing="$missing python3"
for tool in minisign openssl git; do
    command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
python3 -c 'import ctypes; ctypes.CDLL("libzopfli.so.1")' 2>/dev/null || missing="$missing libzopfli1"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Something is missing. On Debian, as root: apt-get install$missing" >&2
    exit 1
fi
apt-get update -q >/dev/null
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >/dev/null
