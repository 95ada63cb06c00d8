#!/bin/sh
# Stands in for OpenWrt's rc.common and procd: sources an init script, carries out one action, and writes down what procd would be told.
#
#   procd-stub.sh SCRIPT ACTION      or, as /etc/rc.common, by the first line of the scripts
#
# In /tmp/procd: `described` (one line per call), `config` (UCI: SECTION.OPTION=VALUE), `running` (names of services that run).
# Where there is /etc/procd-starts, services are also started and ended, as procd would.
mkdir -p /tmp/procd
note() { echo "$*" >>/tmp/procd/described; }

# /lib/functions.sh
config_load() { [ "$1" = ctrl-exec ] || note "UNKNOWN config $1"; }
config_get() { # variable section option default
    _value=$(sed -n "s/^$2\.$3=//p" /tmp/procd/config 2>/dev/null | tail -n 1)
    eval "$1=\${_value:-\${4:-}}"
}
config_get_bool() {
    config_get "$@"
    eval "_value=\$$1"
    case $_value in
    1 | on | true | yes | enabled) eval "$1=1" ;;
    0 | off | false | no | disabled) eval "$1=0" ;;
    *) eval "$1=\${4:-}" ;;
    esac
}

# procd.sh
procd_open_instance() { note "instance ${1:-}"; }
procd_close_instance() {
    note close
    [ ! -e /etc/procd-starts ] || start_instance
}
procd_set_param() {
    case $1 in
    command | user)
        note "$@"
        _param=$1
        shift
        eval "_$_param=\$*"
        ;;
    respawn | limits | group | term_timeout | stderr | stdout | no_new_privs | env | file | pidfile | facility | nice) note "$@" ;;
    reload_signal) note "reload_signal $(kill -l "$2")" ;;
    *) note "UNKNOWN param $*" ;;
    esac
}
procd_add_reload_trigger() { note "trigger config.change $*"; }
procd_running() { grep -q -x "$1" /tmp/procd/running 2>/dev/null; }
procd_send_signal() {
    case ${3:-} in
    '') note "UNKNOWN signal" ;;
    *) note "signal $1 $2 $(kill -l "$3")" ;;
    esac
}
procd_kill() {
    note "kill $1"
    [ ! -e /etc/procd-starts ] || end_instance "$1"
}

# What procd does with an instance.
start_instance() {
    # shellcheck disable=SC2086
    set -- ${_command:?}
    _prog=$1
    shift
    start-stop-daemon -S -b -m -p "/tmp/procd/$name.pid" -c "${_user:-root}" -x "$_prog" -- "$@" || return
    procd_running "$name" || echo "$name" >>/tmp/procd/running
}
end_instance() {
    [ -e "/tmp/procd/$1.pid" ] || return 0
    _pid=$(cat "/tmp/procd/$1.pid")
    kill "$_pid"
    _left=100
    while [ -e "/proc/$_pid" ] && [ $_left -gt 0 ]; do
        _left=$((_left - 1))
        sleep 0.1
    done
    rm -f "/tmp/procd/$1.pid"
    sed -i "/^$1\$/d" /tmp/procd/running
}

# rc.common
start_service() { return 0; }
stop_service() { return 0; }
service_triggers() { return 0; }
initscript=$1
action=$2
name=$(basename "$(readlink -f "$initscript")")
# shellcheck disable=SC1090
. "$initscript"
[ "${USE_PROCD:-}" = 1 ] || note "UNKNOWN not for procd"
start() {
    start_service
    service_triggers
    note "set $name"
}
stop() {
    stop_service
    procd_kill "$name"
}
restart() { stop && start; }
reload() {
    if type reload_service >/dev/null 2>&1; then reload_service; else start; fi
}
enable() {
    ln -sf "../init.d/$name" "/etc/rc.d/S$START$name" && ln -sf "../init.d/$name" "/etc/rc.d/K$STOP$name"
}
case $action in
start | stop | restart | reload | enable) "$action" ;;
boot) start ;;
disable) rm -f "/etc/rc.d/S$START$name" "/etc/rc.d/K$STOP$name" ;;
enabled) [ -x "/etc/rc.d/S$START$name" ] ;;
running) procd_running "$name" ;;
nothing) : ;;
*) exit 64 ;;
esac
