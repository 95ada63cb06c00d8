#!/bin/sh
# Stands in for OpenWrt's rc.common and procd: sources an init script, carries out one action, and writes down what procd would be told.
#
#   procd-stub.sh SCRIPT ACTION
#
# In /tmp/procd: `described` (one line per call), `config` (UCI: SECTION.OPTION=VALUE), `running` (names of services that run).
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
procd_close_instance() { note close; }
procd_set_param() {
    case $1 in
    command | respawn | limits | user | group | term_timeout | stderr | stdout | no_new_privs | env | file | pidfile | facility | nice) note "$@" ;;
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
procd_kill() { note "kill $1"; }

# rc.common
start_service() { return 0; }
stop_service() { return 0; }
service_triggers() { return 0; }
initscript=$1
action=$2
name=$(basename "$initscript")
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
case $action in
start | stop | restart | reload) "$action" ;;
boot) start ;;
nothing) : ;;
*) exit 64 ;;
esac
