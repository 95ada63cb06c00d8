#!/bin/sh
# Gets schemathesis into an environment of its own below target/, then lets it loose on a real API with two agents (tests/api_schemathesis.rs).
# Without the tool this fails: nothing would have been tried.
set -eu
cd "$(dirname "$0")/.."
want=dist/api-fuzz.txt
home=$(pwd)/target/api-fuzz
if ! cmp -s "$want" "$home/installed.txt"; then
    rm -rf "$home"
    python3 -m venv "$home" || { echo "Python 3.10 or newer with its module venv is needed (Debian: python3-venv)." >&2; exit 1; }
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$want"
    cp "$want" "$home/installed.txt"
fi
cargo=$(command -v cargo || echo /usr/bin/cargo)
CTRL_EXEC_SCHEMATHESIS=$home/bin/schemathesis exec "$cargo" test --locked --test api_schemathesis -- --nocapture
