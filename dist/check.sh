#!/bin/sh
# Checks of service files and packages, each a program of its own in dist/checks; prints a table at the end and fails if one of them did, or
# could not do its work on this machine.
#
#   check.sh [--full] [NAME...]     without names: all of them; --full: also what takes long
#
# Needs the static binary (make static, or CTRL_EXEC_TEST_BIN), for artefacts and deb what `make dist` has made, and for most root.
set -u
here=$(cd "$(dirname "$0")" && pwd)
full=
names=
for word in "$@"; do
    case $word in
    --full) full=--full ;;
    -*) echo "usage: check.sh [--full] [NAME...]" >&2; exit 64 ;;
    *) names="$names $word" ;;
    esac
done
[ -n "$names" ] || names="syntax systemd syscalls procd openrc router artefacts deb"

sh "$here/checks/packages.sh" || exit

table=$(mktemp)
log=$(mktemp)
trap 'rm -f "$table" "$log"' EXIT
result=0
for name in $names; do
    printf '\n== %s\n' "$name"
    began=$(date +%s)
    # No pipe: the status is that of the check.
    # Longest that one of them may take, in seconds: several times what it takes on a small machine. It is told to end first, so that it can clean up.
    case $name in
    artefacts | deb | openrc) deadline=1200 ;;
    *) deadline=600 ;;
    esac
    timeout -k 30 $deadline sh "$here/checks/$name.sh" $full >"$log" 2>&1 </dev/null
    status=$?
    cat "$log"
    case $status in
    0) word=ok ;;
    2) word=CANNOT ;;
    124 | 137) word=TIMEOUT ;;
    *) word=FAILED ;;
    esac
    [ "$status" = 0 ] || result=1
    # Each counts in its own words.
    points=$(awk '/^ok / { n += 1 } /^Ran [0-9]+ tests? in/ { n += $2 } /^[0-9]+ points checked/ { n += $1 } END { print n + 0 }' "$log")
    printf '%-10s %-7s %5s %5s %6s\n' "$name" "$word" "$points" "$(grep -c -e '^FAIL' "$log")" "$(($(date +%s) - began)) s" >>"$table"
done
printf '\n%-10s %-7s %5s %5s %6s\n' check result ok FAIL time
cat "$table"
exit "$result"
