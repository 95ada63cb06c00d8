#!/bin/sh
# What router.sh runs as the first process of the router, once per boot: pair, run, or day.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
. /checks/lib.sh
. /checks/host.sh
make_devices /dev
hostname web1.test
ip link set lo up
mkdir -p /var/run /var/log /var/lib /mnt/control
syslogd -O /mnt/messages
# The dispatcher is another host, as far as one machine can be two: everything that it has is below this folder.
control() { CTRL_EXEC_ROOT=/mnt/control "$@"; }
runs_as() { control ced run web1.test who | grep -q -x "$1"; }
pings() { control ced ping web1.test | grep -q -E '^web1.test +ok '; }

# Asks the init script, then does what procd would do.
start() { # service
    mkdir -p /tmp/procd
    : >/tmp/procd/described
    sh /checks/procd-stub.sh "/etc/init.d/ctrl-exec-$1" start
    words=$(sed -n 's/^command //p' /tmp/procd/described)
    user=$(sed -n 's/^user //p' /tmp/procd/described)
    [ -n "$words" ] || return 1
    # shellcheck disable=SC2086
    set -- $words
    prog=$1
    shift
    start-stop-daemon -S -b -c "${user:-root}" -x "$prog" -- "$@"
}

case $1 in
pair)
    same "/var is a RAM disk" tmpfs "$(stat -f -c %T /var/)"
    expect "/etc is none" not test "$(stat -f -c %T /etc)" = tmpfs
    expect "an unpaired agent does not start" not start agent
    control ced setup-ca >/dev/null
    control ced setup-ctrl-exec --yes >/dev/null
    control ced pairing-mode start >/dev/null
    id=$(cea request-pairing --background --dispatcher 127.0.0.1 --lookup-by ip --timeout 60 --yes)
    expect "approve" control ced approve "$id"
    expect "paired" within 20 cea paired
    control ced pairing-mode stop >/dev/null
    expect "executor" start exec
    expect "agent" start agent
    expect "run" within 10 runs_as nobody
    ;;
run)
    expect "the RAM disk is empty" test ! -e /var/run/ctrl-exec-agent
    expect "executor" start exec
    expect "agent" start agent
    expect "run, without pairing again" within 10 runs_as nobody
    ;;
day)
    # The clocks of both are moved by five minutes after each ping.
    export CTRL_EXEC_CLOCK_OFFSET_FILE=/tmp/clock
    echo 0 >/tmp/clock
    expect "executor" start exec
    expect "agent" start agent
    expect "ping" within 10 pings
    before=$(find /var/ -xdev -type f -exec stat -c '%n %i %s %Y %Z' {} + | grep -v -e /clock -e /procd/ | sort)
    answered=0 ran=0 minute=0
    while [ $minute -lt 1440 ]; do
        minute=$((minute + 5))
        echo $((minute * 60)) >/tmp/clock
        pings && answered=$((answered + 1))
        if [ $((minute % 60)) = 0 ]; then runs_as nobody && ran=$((ran + 1)); fi
    done
    same "pings and runs of a day are answered" "288 24" "$answered $ran"
    after=$(find /var/ -xdev -type f -exec stat -c '%n %i %s %Y %Z' {} + | grep -v -e /clock -e /procd/ | sort)
    same "no file below /var was written either" "$before" "$after"
    expect "the log shows the pings" grep -q 'ctrl-exec-agent.*ACTION=ping' /mnt/messages
    ;;
esac
finish
