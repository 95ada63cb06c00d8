#!/bin/sh
# The linker of dist/static.sh for routers: called by rustc as it would call a C compiler
# (from a name that begins with "link." rustc would conclude something else).
#
# Zig knows what a program needs (its start code, libc, the compiler's helpers; it builds them when they are first wanted) and in which order,
# but its driver takes only few of a linker's options. So Zig links first and says with which line; the same line is then run by LLVM's own
# linker, with what Zig's does not take:
#   --icf=all                      functions with the same instructions are there once: what Rust makes for each type is often that
#   --bp-compression-sort=both     functions and constants that are alike lie together, where the window of gzip (32 KiB) still sees them
#
# LINK_ZIG: the Python that has Zig; LINK_TARGET, LINK_CPU: what Zig calls the machine; LINK_LLD: LLVM's linker, 21 or newer (empty: Zig's stays);
# LINK_UNWIND: an object in the place of libunwind (empty: none); LINK_LLVM: LLVM's programs, if what rustc made is to become MIPS16e (dist/mips16.py).
set -eu

# Zig brings libc without being asked. An unwinder has nothing to unwind in a program that ends at a panic (dist/unwind.c).
first=yes strip=no
for word; do
    [ $first = no ] || set --
    first=no
    case $word in
    -lc) continue ;;
    -Wl,--strip-all) strip=yes ;;
    -lunwind) [ -z "$LINK_UNWIND" ] || word=$LINK_UNWIND ;;
    esac
    set -- "$@" "$word"
done

# For size (-Oz), libc and the helpers too, which are made for speed otherwise.
if ! said=$(ZIG_VERBOSE_LINK=1 "$LINK_ZIG" -m ziglang cc -target "$LINK_TARGET" -mcpu="$LINK_CPU" -Oz -fno-sanitize=all "$@" 2>&1); then
    echo "$said" >&2
    exit 1
fi
[ -n "$LINK_LLD" ] || exit 0
line=$(echo "$said" | sed -n '/ -r /d; s/^ld\.lld //p' | tail -n 1)
[ -n "$line" ] || {
    echo "linker.sh: Zig did not say how it links: $said" >&2
    exit 1
}
# Zig takes names away from all that is made for size; who counts them (CARGO_PROFILE_RELEASE_STRIP=none) wants to see them.
[ $strip = yes ] || line=$(echo "$line" | sed 's/ -s / /')
# Words are parted at blanks: no path here may hold one.
if [ -n "${LINK_LLVM:-}" ]; then
    # Of one crate's bitcode rustc makes one file, whose name is that of the object up to the first point.
    object=$(echo "$line" | tr ' ' '\n' | grep '\.rcgu\.o$')
    folder=$(dirname "$object") name=$(basename "$object")
    # shellcheck disable=SC2086
    exec python3 dist/mips16.py "$LINK_LLVM" mipsel-linux-gnu- "$folder/${name%%.*}.bc" $LINK_LLD -- $line
fi
# shellcheck disable=SC2086
exec $LINK_LLD $line --icf=all --bp-compression-sort=both
