#!/bin/sh
# Fuzzes every target of fuzz/, each for FUZZ_SECONDS (default 20). What breaks a promise is left in fuzz/corpus/TARGET, where every
# `cargo test` replays it from then on. No nightly compiler is needed: instrumentation is a pass of LLVM that every rustc has.
#
# usage: fuzz.sh [TARGET...]
set -eu
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-20}
cargo=$(command -v cargo || echo /usr/bin/cargo)

cannot() {
    echo "NOTE: nothing was fuzzed: $1. The corpus is replayed by the tests all the same." >&2
    exit 0
}

command -v c++ >/dev/null 2>&1 || {
    [ -f /etc/debian_version ] && [ "$(id -u)" = 0 ] &&
        apt-get update -q >/dev/null 2>&1 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends g++ >/dev/null 2>&1 ||
        cannot "libFuzzer needs a C++ compiler (install g++)"
}

# A target of its own even where it is the host: else build scripts would be instrumented too, and not link.
host=$(rustc -vV | sed -n 's/^host: //p')
[ -n "$host" ] || cannot "rustc does not tell its host"
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
export CARGO_TARGET_DIR="$PWD/target/fuzz"

# Whether this compiler and linker can do it at all is asked of an empty program, so that a mistake in a target is not taken for that.
mkdir -p "$CARGO_TARGET_DIR"
echo 'fn main() {}' >"$CARGO_TARGET_DIR/probe.rs"
rustc --crate-type lib --crate-name probe $coverage --out-dir "$CARGO_TARGET_DIR" "$CARGO_TARGET_DIR/probe.rs" >/dev/null 2>&1 ||
    cannot "this rustc has no coverage instrumentation"

RUSTFLAGS="$coverage" "$cargo" build --quiet --locked --release --target "$host" --manifest-path fuzz/Cargo.toml --bins

[ $# -gt 0 ] || set -- $(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' fuzz/Cargo.toml)
failed=""
for target in "$@"; do
    grown=$CARGO_TARGET_DIR/corpus/$target
    mkdir -p "$grown"
    log=$CARGO_TARGET_DIR/$target.log
    # The first folder takes what is new, the second is only read.
    if "$CARGO_TARGET_DIR/$host/release/$target" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -max_len=8192 -dict=fuzz/words.dict \
        -report_slow_units=5 -artifact_prefix="fuzz/corpus/$target/" "$grown" "fuzz/corpus/$target" >"$log" 2>&1; then
        echo "fuzz: $target: $(grep '^Done' "$log"), $(sed -n 's/.* \(cov: [0-9]*\).*/\1/p' "$log" | tail -n 1)"
    else
        failed="$failed $target"
        tail -n 40 "$log" >&2
    fi
done
[ -z "$failed" ] || {
    echo "fuzz: broken promises:$failed. The input lies in fuzz/corpus/; mend what it shows and keep the file: tests/fuzz_corpus.rs replays it." >&2
    exit 1
}
