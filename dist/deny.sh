#!/bin/sh
# cargo deny: licences, bans and sources always; advisories wherever their database can be fetched, and said aloud where it cannot.
set -eu
cargo deny --log-level error check bans licenses sources
if cargo deny --log-level off fetch db >/dev/null 2>&1; then
    cargo deny --log-level error check advisories
else
    echo "NOTE: the advisory database cannot be reached from here: advisories were NOT checked." >&2
fi
