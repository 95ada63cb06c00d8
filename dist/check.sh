#!/bin/sh
# Checks of service files, each a program of its own in dist/checks; prints a table at the end and fails if one of them did.
#
#   check.sh [--full] [NAME...]     without names: all of them; --full: also what takes long
#
# Needs the static binary (make static, or CTRL_EXEC_TEST_BIN) and, for most, root.
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
[ -n "$names" ] || names="syntax systemd procd openrc router"

sh "$here/checks/packages.sh" || exit

table=$(mktemp)
log=$(mktemp)
trap 'rm -f "$table" "$log"' EXIT
result=0
for name in $names; do
    printf '\n== %s\n' "$name"
    began=$(date +%s)
    # No pipe: the status is that of the check.
    sh "$here/checks/$name.sh" $full >"$log" 2>&1
    status=$?
    cat "$log"
    case $status in
    0) word=ok ;;
    2) word=CANNOT ;;
    *) word=FAILED ;;
    esac
    [ "$status" = 0 ] || result=1
    printf '%-10s %-7s %5s %5s %6s\n' "$name" "$word" "$(grep -c '^ok ' "$log")" "$(grep -c '^FAIL ' "$log")" "$(($(date +%s) - began)) s" >>"$table"
done
printf '\n%-10s %-7s %5s %5s %6s\n' check result ok FAIL time
cat "$table"
exit "$result"
