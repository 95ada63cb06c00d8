# Sourced by the checks of this folder: counting, cleaning up, and what several of them need. POSIX sh, also for busybox ash.
#
# A check says "ok" or "FAIL" for each promise and ends with 1 if one was broken. What cannot be looked at here ends with 2 and a reason:
# that is a failure too. Nothing is left out in silence.

passed=0
failed=0

# expect WHAT COMMAND...: the promise holds if the command says so; what it printed is shown if not.
expect() {
    _what=$1
    shift
    if _said=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "ok   $_what"
    else
        failed=$((failed + 1))
        echo "FAIL $_what"
        printf '%s\n' "$_said" | sed 's/^/     /'
    fi
}

# same WHAT EXPECTED FOUND
same() {
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
        echo "ok   $1"
    else
        failed=$((failed + 1))
        echo "FAIL $1"
        printf '     expected: %s\n     found:    %s\n' "$2" "$3"
    fi
}

# has WHAT TEXT WORD...: each word stands in the text.
has() {
    _what=$1 _text=$2
    shift 2
    for _word in "$@"; do
        case "$_text" in
        *"$_word"*) ;;
        *)
            failed=$((failed + 1))
            printf 'FAIL %s\n     missing: %s\n     in:      %s\n' "$_what" "$_word" "$_text"
            return 0
            ;;
        esac
    done
    passed=$((passed + 1))
    echo "ok   $_what"
}

not() { ! "$@"; }

# within SECONDS COMMAND...: until it succeeds.
within() {
    _left=$(($1 * 5))
    shift
    until "$@" >/dev/null 2>&1; do
        _left=$((_left - 1))
        [ "$_left" -gt 0 ] || {
            echo "not within the time: $*"
            return 1
        }
        sleep 0.2
    done
}

cannot() {
    echo "CANNOT: $*" >&2
    exit 2
}

finish() {
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
}

# The static binary that the checks run: CTRL_EXEC_TEST_BIN, else what `make static` has built.
binary() {
    _binary=${CTRL_EXEC_TEST_BIN:-$repo/target/dist/ctrl-exec-$(uname -m)}
    [ -x "$_binary" ] || cannot "no binary '$_binary': run 'make static', or set CTRL_EXEC_TEST_BIN"
    echo "$_binary"
}

# A folder that goes when the check ends, however it ends, with whatever is mounted below. `at_exit` may name more to do before.
make_work() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/ctrl-exec-check-XXXXXX")
    at_exit=:
    trap leave EXIT
    trap 'exit 130' INT TERM
}

leave() {
    _status=$?
    trap '' INT TERM
    $at_exit
    rm -rf --one-file-system "$work"
    exit "$_status"
}

need_root() {
    [ "$(id -u)" = 0 ] || cannot "this needs root: $1"
}
