#!/bin/sh
# Size of the static binary against its bound. Idle memory and start-up time are measured by `make bench`.
set -eu
binary=$1
bound=$((3 * 1024 * 1024))
bytes=$(wc -c <"$binary")
packed=$(gzip -9c "$binary" | wc -c)
printf '%-28s %9s bytes  (bound %s)\n' "$(basename "$binary")" "$bytes" "$bound"
printf '%-28s %9s bytes\n' "  compressed (gzip -9)" "$packed"
[ "$bytes" -le "$bound" ] || {
    echo "larger than its bound" >&2
    exit 1
}
