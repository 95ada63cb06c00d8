#!/bin/sh
# Every start script and every script of this folder is read by the shells that will run it, and by shellcheck.
set -u
repo=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=dist/checks/lib.sh
. "$repo/dist/checks/lib.sh"
cd "$repo" || exit 1

lint() { # options of shellcheck, file
    shellcheck -s dash "$@"
}
for file in openrc/ctrl-exec-* openrc/conf.d/* procd/ctrl-exec-* procd/hotplug-ntp/* procd/uci-defaults/* dist/check.sh dist/checks/*.sh; do
    expect "$file: dash" dash -n "$file"
    expect "$file: busybox ash" busybox ash -n "$file"
    case $file in
    # Variables are for OpenRC and rc.common, `local` is known to every ash, and busybox sleeps for fractions of a second.
    *) expect "$file: shellcheck" lint -e SC2034,SC3043,SC1091,SC2181 "$file" ;;
    esac
done
for file in dist/checks/*.py; do expect "$file: python" python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read())' "$file"; done
# What rc.common and OpenRC insist on.
for file in openrc/ctrl-exec-*; do same "$file: first line" '#!/sbin/openrc-run' "$(head -n 1 "$file")"; done
for file in procd/ctrl-exec-agent procd/ctrl-exec-exec procd/ctrl-exec-api procd/ctrl-exec-maintenance; do
    same "$file: first line" '#!/bin/sh /etc/rc.common' "$(head -n 1 "$file")"
    expect "$file: is executable" test -x "$file"
done
finish
