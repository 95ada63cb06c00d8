#!/bin/sh
# The budgets of the static binary: its size, the daemons' idle memory, the start-up time. Sizes and memory have bounds; times are only
# shown (`make bench` compares them with references).
set -eu
binary=$1
# 4 MiB for the whole product; what its parts have cost stands in docs/dependencies.md.
size_bound=$((4096 * 1024))
pss_bound=4096
executor_bound=1024
broken=no

# What has been built for other machines: architecture, bound of the binary, bound of it compressed (KiB, "-": none).
offered='aarch64 - -
aarch64-router - -
armv7 3686 -
armv7-router 2252 1024
mipsel-router 2252 1024
x86_64-router - -'

row() { # what value unit bound
    printf '%-36s %9s %-6s %s\n' "$1" "$2" "$3" "${4:+(bound $4)}"
    if [ -n "${4:-}" ] && [ "$2" -gt "$4" ]; then
        echo "  ^ beyond its bound" >&2
        broken=yes
    fi
}

# What has a bound is the package: compressed as there, if Zopfli is there, which the packages need.
packed() { # file bound
    if [ -n "$2" ] && size=$(python3 -c '
import sys
sys.path.insert(0, sys.argv[1])
from archive import squeeze
print(len(squeeze(open(sys.argv[2], "rb").read())))' "$(dirname "$0")/package" "$1" 2>/dev/null); then
        row "  compressed (Zopfli)" "$size" bytes "$2"
    else
        row "  compressed (gzip -9)" "$(gzip -9c "$1" | wc -c)" bytes "$2"
    fi
}

row "$(basename "$binary")" "$(wc -c <"$binary")" bytes "$size_bound"
row "  compressed (gzip -9)" "$(gzip -9c "$binary" | wc -c)" bytes ""

while read -r one bound packed; do
    other=target/dist/ctrl-exec-$one
    [ -f "$other" ] && [ "$other" != "$binary" ] || continue
    [ "$bound" = - ] && bound='' || bound=$((bound * 1024))
    [ "$packed" = - ] && packed='' || packed=$((packed * 1024))
    row "ctrl-exec-$one" "$(wc -c <"$other")" bytes "$bound"
    packed "$other" "$packed"
done <<LIST
$offered
LIST

folder=$(mktemp -u "${TMPDIR:-/tmp}/ctrl-exec-size-XXXXXX")
said=$("$binary" demo --keep --dir "$folder")
pid_of() {
    echo "$said" | sed -n "s/^# The $1 (pid \([0-9]*\)).*/\1/p"
}
agent=$(pid_of agent)
executor=$(pid_of executor)
trap 'kill "$agent" "$executor" 2>/dev/null; rm -rf "$folder"' EXIT
sleep 3
# Both are the same file: a page that both have touched counts half for each.
pss() {
    awk '/^Pss:/ {print $2}' "/proc/$1/smaps_rollup"
}
row "cea serve, idle (PSS)" "$(pss "$agent")" KiB "$pss_bound"
row "ctrl-exec-exec serve, idle (PSS)" "$(pss "$executor")" KiB "$executor_bound"

runs=100
start=$(date +%s%N)
i=0
while [ $i -lt $runs ]; do
    "$binary" --version >/dev/null
    i=$((i + 1))
done
row "start-up (ctrl-exec --version)" "$((($(date +%s%N) - start) / runs / 1000))" us ""
[ "$broken" = no ]
