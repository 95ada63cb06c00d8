#!/bin/sh
# Builds the static musl binary with whichever toolchain is there and puts it to target/dist/ctrl-exec-ARCH (-router for that profile).
#   static.sh              build
#   static.sh --example X  the same for an example of the package: what the bench compares the binary with
#   static.sh --can-build  exit 0 if the compilers for it are there
#   static.sh --smallest   exit 0 if the first of the ways below is there
#   static.sh --linker     exit 0 if LLVM's linker is there, new enough for dist/linker.sh
#   static.sh --mips16     exit 0 if what dist/mips16.py needs is there
#   static.sh --tools      fetch Zig's C toolchain (only for the third way)
#
# Three ways, in this order: Debian's standard library source, which is compiled along for size (-Zbuild-std) and linked by Zig's C toolchain,
# because Debian's libgcc_eh wants a symbol that musl has not; rustup's musl target, whose standard library is built for speed and unwinding
# and makes the binary a third larger; a host that is musl itself (Alpine). The bounds of size.sh are those of the first way.
#
# ARCH=x86_64|aarch64|armv7|mipsel (default: this machine) builds for another one; only the first way can. docs/architectures.md has the table.
# PROFILE=router leaves the dispatcher and its API out (default: full).
set -eu

here=$(uname -m)
[ "$here" != armv7l ] || here=armv7
arch=${ARCH:-$here}
target=$arch-unknown-linux-musl
[ "$arch" != armv7 ] || target=armv7-unknown-linux-musleabihf
features='' suffix=''
case ${PROFILE:-full} in
full) ;;
router) features=--no-default-features suffix=-router ;;
*)
    echo "PROFILE is '$PROFILE': use full or router" >&2
    exit 2
    ;;
esac
venv=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ctrl-exec-build/zig

way() {
    if [ -f /etc/debian_version ] && [ -x /usr/bin/rustc ] && [ -d "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/std" ] && /usr/bin/python3 -c 'import venv, ensurepip' 2>/dev/null; then
        echo debian
    elif [ "$arch" != "$here" ]; then
        return 1
    elif command -v rustc >/dev/null 2>&1 && [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
        echo rustup
    elif [ -f /etc/alpine-release ] && command -v cargo >/dev/null 2>&1; then
        echo native
    else
        return 1
    fi
}

# LLVM's linker from version 21, which sorts for compression: Debian's or the one that comes with rustup's compilers.
lld() {
    for name in ld.lld-23 ld.lld-22 ld.lld-21 ld.lld; do
        linker=$(command -v "$name") && new_enough "$linker" && echo "$linker" && return
    done
    for linker in "${RUSTUP_HOME:-${HOME:-/root}/.rustup}"/toolchains/*/lib/rustlib/*/bin/rust-lld; do
        [ -x "$linker" ] && new_enough "$linker -flavor gnu" && echo "$linker -flavor gnu" && return
    done
    true
}

# The programs of LLVM that dist/mips16.py needs, of the version that Debian's rustc has, if GNU's for that machine are there too.
llvm() {
    programs=/usr/lib/llvm-$(/usr/bin/rustc -vV | sed -n 's/^LLVM version: \([0-9]*\)\..*/\1/p')/bin
    [ ! -x "$programs/llc" ] || [ ! -x "$programs/llvm-dis" ] || ! command -v mipsel-linux-gnu-as >/dev/null || ! command -v mipsel-linux-gnu-ld >/dev/null || echo "$programs"
}

new_enough() { # command, perhaps with arguments
    version=$($1 --version 2>/dev/null | sed -n 's/.*LLD \([0-9]*\)\..*/\1/p')
    [ "${version:-0}" -ge 21 ]
}

case ${1:-} in
--can-build)
    way >/dev/null
    exit
    ;;
--smallest)
    [ "$(way || true)" = debian ]
    exit
    ;;
--linker)
    [ -n "$(lld)" ]
    exit
    ;;
--mips16)
    [ -n "$(llvm)" ]
    exit
    ;;
--tools)
    [ "$(way)" = debian ] || exit 0
    if [ ! -x "$venv/bin/cargo-zigbuild" ]; then
        rm -rf "$venv"
        /usr/bin/python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check ziglang==0.15.2 cargo-zigbuild==0.23.4
    fi
    exit
    ;;
esac

name=ctrl-exec
wanted=
if [ "${1:-}" = --example ]; then
    name=$2
    wanted="--example $name"
fi
way=$(way) || {
    echo "No toolchain for $target: run 'make deps' first." >&2
    exit 1
}
how=$way
# No correct clock shows less than this; a host without a battery takes it as its floor. Never the future, whatever the last commit says.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
[ "$epoch" -le "$(date +%s)" ] || epoch=0
export CTRL_EXEC_BUILD_EPOCH="$epoch"
# No path of the machine that builds: it would cost space, and two machines would make two different files. Where the sources of crates lie
# is known when they are there.
PATH="$PATH:/usr/bin" cargo fetch --quiet --locked
flags="-Cforce-unwind-tables=no"
for sources in "${CARGO_HOME:-${HOME:-/root}/.cargo}"/registry/src/*/; do
    flags="$flags --remap-path-prefix=$sources="
done
extra='' link_target=$arch-linux-musl link_cpu=baseline own_linker=no
case $arch in
# Addresses are absolute below, so a table of jumps has 8 bytes per entry here: few cases are compared one by one.
x86_64) extra=-Cllvm-args=-min-jump-table-entries=8 ;;
# Where musl once had a time of 32 bits, it is told to use the one of 64: certificates do not end in 2038.
armv7)
    export RUST_LIBC_UNSTABLE_MUSL_V1_2_3=1
    # Every ARMv7 has Thumb-2, which says the same in fewer bytes.
    extra=-Ctarget-feature=+thumb-mode
    if [ -n "$suffix" ]; then
        # So does C: ring's (Zig is told twice, because what it makes of -mthumb alone is heard by its assembler only), and libc.
        export CFLAGS_armv7_unknown_linux_musleabihf="-mthumb -Xclang -target-feature -Xclang +thumb-mode"
        link_target=thumb-linux-musleabihf link_cpu=generic+v7a+vfp3-d32+thumb2-neon own_linker=yes
    fi
    ;;
# The compiler's idea of this target is dynamic. 24Kc: no floating point unit.
mipsel)
    export RUST_LIBC_UNSTABLE_MUSL_V1_2_3=1
    extra="-Ctarget-feature=+crt-static,+soft-float -Ctarget-cpu=mips32r2"
    link_target=mipsel-linux-musleabi link_cpu=mips32r2+soft_float own_linker=yes
    ;;
esac
case $way in
rustup)
    RUSTFLAGS="$flags" cargo build --locked --release $features $wanted --target "$target"
    built=${CARGO_TARGET_DIR:-target}/$target/release
    ;;
native)
    RUSTFLAGS="$flags -Ctarget-feature=+crt-static" cargo build --locked --release $features $wanted --target-dir "${CARGO_TARGET_DIR:-target}/static"
    built=${CARGO_TARGET_DIR:-target}/static/release
    ;;
debian)
    sh "$0" --tools
    # Zig links a program for fixed addresses; code that could lie anywhere would only be longer.
    extra="$extra -Crelocation-model=static"
    # A panic says what was wrong and in which file, without line and column; on a router, where a KiB is worth more, no file either.
    if [ -n "$suffix" ]; then place=none; else place=file; fi
    extra="$extra -Zlocation-detail=$place"
    # Where the package has a bound that it would not keep otherwise: what a type says of itself to developers ({:?}) is its name without what
    # it holds, for which no message asks; and a panic has no text, only the address that core/sys/trap.rs tells.
    # Nothing is made part of its callers that would make them larger: 1 KiB of the package.
    [ $own_linker = no ] || extra="$extra -Zfmt-debug=shallow -Zunstable-options -Cpanic=immediate-abort -Cllvm-args=-inline-threshold=0"
    # An unwinder that has nothing to unwind (and on MIPS three functions of libc). On 32 bits libunwind is wanted for more, and with Zig's linker the stand-in would be there twice.
    unwind=
    case $arch-$own_linker in
    x86_64-* | aarch64-* | *-yes)
        unwind=target/dist/unwind-$arch.o
        mkdir -p target/dist
        "$venv/bin/python" -m ziglang cc -target "$link_target" -mcpu="$link_cpu" -Oz -ffunction-sections -c dist/unwind.c -o "$unwind"
        ;;
    esac
    # dist/linker.sh says what is won by LLVM's own linker.
    if [ $own_linker = no ]; then
        extra="$extra${unwind:+ -Clink-arg=$unwind}"
    else
        LINK_LLD=$(lld)
        export LINK_LLD LINK_ZIG="$venv/bin/python" LINK_TARGET="$link_target" LINK_CPU="$link_cpu" LINK_UNWIND="$unwind"
        [ -n "$LINK_LLD" ] || how="$way, linked by Zig: larger than with LLVM's linker 21 or newer, which 'make deps' installs"
        export "CARGO_TARGET_$(echo "$target" | tr 'a-z-' 'A-Z_')_LINKER=$PWD/dist/linker.sh"
        # Half as long instructions for 24Kc and its kin, made of rustc's bitcode by dist/mips16.py.
        export LINK_LLVM=
        if [ "$arch" = mipsel ]; then
            LINK_LLVM=$(llvm)
            if [ -z "$LINK_LLVM" ] || [ -z "$LINK_LLD" ]; then
                LINK_LLVM=
                how="$how, of MIPS32 instructions: larger than of MIPS16e, for which 'make deps ARCH=mipsel' installs what is needed"
            fi
            extra="$extra${LINK_LLVM:+ --emit=llvm-bc}"
        fi
    fi
    # The profiles are made with other flags: in one folder each would undo what was built for the other.
    folder=${CARGO_TARGET_DIR:-target}${suffix:+/router}
    PATH="$venv/bin:/usr/bin:$PATH" RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags -Clink-self-contained=no $extra" \
        "$venv/bin/cargo-zigbuild" zigbuild --locked --release $features $wanted -Zbuild-std=std,panic_abort -Zbuild-std-features=optimize_for_size --target "$target" --target-dir "$folder"
    built=$folder/$target/release
    ;;
esac
built=$built${wanted:+/examples}/$name
result=target/dist/$name-$arch$suffix
mkdir -p target/dist
cp "$built" "$result.new"
# LLVM describes every MIPS procedure to debuggers in a section that the linker's stripping leaves: a sixth of the file, never loaded.
# What lies behind the loaded part goes, and with it the table of sections.
[ "$arch" != mipsel ] || /usr/bin/python3 - "$result.new" <<'PYTHON'
import struct, sys

with open(sys.argv[1], "r+b") as file:
    head = bytearray(file.read(52))
    programs, size, count = struct.unpack_from("<I", head, 28)[0], *struct.unpack_from("<HH", head, 42)
    file.seek(programs)
    loaded = [struct.unpack_from("<8I", file.read(size)) for _ in range(count)]
    struct.pack_into("<I", head, 32, 0)
    struct.pack_into("<HHH", head, 46, 0, 0, 0)
    file.seek(0)
    file.write(head)
    file.truncate(max(offset + length for _, offset, _, _, length, *_ in loaded))
PYTHON
# Whoever uses it meanwhile has the old one or the new one; the same one is left alone.
if cmp -s "$result.new" "$result"; then
    rm "$result.new"
else
    mv "$result.new" "$result"
fi
echo "$result ($how): $(wc -c <"$result") bytes"
