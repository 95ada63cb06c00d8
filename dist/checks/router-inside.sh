#!/bin/sh
# What router.sh runs as the first process of the router, once per boot: install, pair, run, day, night, reinstall, uninstall.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
. /checks/lib.sh
. /checks/host.sh
rm -f /dev/null
make_devices /dev
hostname web1.test
ip link set lo up
mkdir -p /var/run /var/log /var/lib
syslogd -O /mnt/messages
# The dispatcher is another host, as far as one machine can be two: everything that it has is below this folder.
control() { CTRL_EXEC_ROOT=/mnt/control PATH=/mnt/control/bin:$PATH "$@"; }
runs_as() { control ced run web1.test who 2>/mnt/said | grep -q -x "$1"; }
pings() { control ced ping web1.test 2>/mnt/said | grep -q -E '^web1.test +ok '; }
runs() { grep -q -x "ctrl-exec-$1" /tmp/procd/running 2>/dev/null; }
boot() { for script in /etc/rc.d/S*ctrl-exec*; do "$script" boot; done; }

case $1 in
install)
    same "/var is a RAM disk" tmpfs "$(stat -f -c %T /var/)"
    expect "/etc is none" not test "$(stat -f -c %T /etc)" = tmpfs
    expect "install" install_here agent
    has "install: enables, and says what comes next" "$(cat /tmp/installed)" 'Enabled: ctrl-exec-exec, ctrl-exec-agent' \
        '/etc/init.d/ctrl-exec-agent start' 'Port 7443'
    expect_agent_layout /etc/ctrl-exec-agent/state
    expect "install: again" install_here agent
    same "install: and nothing is left to do" "Nothing to do." "$(head -n 1 /tmp/installed)"
    add_scripts
    boot
    expect "unpaired, nothing is started but the executor" not runs agent
    ;;
pair)
    boot
    expect "an unpaired agent does not start" not runs agent
    control ced setup-ca >/dev/null
    control ced setup-ctrl-exec --yes >/dev/null
    control ced pairing-mode start >/dev/null
    id=$(cea request-pairing --background --dispatcher 127.0.0.1 --lookup-by ip --timeout 60 --yes)
    expect "approve" control ced approve "$id"
    expect "paired" within 20 cea paired
    control ced pairing-mode stop >/dev/null
    expect "agent" /etc/init.d/ctrl-exec-agent start
    expect "executor" /etc/init.d/ctrl-exec-exec restart
    expect "run" within 10 runs_as nobody
    ;;
run)
    expect "the RAM disk is empty" test ! -e /var/run/ctrl-exec-agent
    boot
    expect "run, without pairing again" within 10 runs_as nobody
    ;;
day)
    # The clocks of both are moved by five minutes after each ping.
    export CTRL_EXEC_CLOCK_OFFSET_FILE=/mnt/clock
    echo 0 >/mnt/clock
    expect "who watches is ready" within 20 grep -q -x ready /mnt/day
    boot
    expect "ping" within 10 pings
    expect "run" runs_as nobody
    : >/var/mark-dawn
    answered=0 ran=0 minute=0
    while [ $minute -lt 1440 ]; do
        minute=$((minute + 5))
        echo $((minute * 60)) >/mnt/clock
        pings && answered=$((answered + 1))
        if [ $((minute % 60)) = 0 ]; then runs_as nobody && ran=$((ran + 1)); fi
    done
    : >/var/mark-dusk
    same "pings and runs of a day are answered" "288 24" "$answered $ran"
    expect "the log shows the pings" grep -q 'ctrl-exec-agent.*ACTION=ping' /mnt/messages
    echo "on /var: $(find /var/ -xdev ! -type d ! -name 'mark-*' | tr '\n' ' ')"
    ;;
night)
    # Whoever watches must see these.
    expect "who watches is ready" within 20 grep -q -x ready /mnt/night
    : >/etc/written
    echo x >>/etc/written
    echo x >/var/lib/written
    touch /etc/ctrl-exec-agent/agent.key
    expect "what is written is seen" within 10 grep -q 'root .*agent.key' /mnt/night
    expect "on the RAM disk too" within 10 grep -q 'var .*/lib/written' /mnt/night
    rm /etc/written
    ;;
reinstall)
    expect "accounts were kept" id ctrl-exec-agent
    expect "install" install_here agent
    has "install: what was there stays, and is started" "$(cat /tmp/installed)" 'binary  /usr/bin/ctrl-exec' 'Enabled: ctrl-exec-exec, ctrl-exec-agent' \
        '/etc/init.d/ctrl-exec-agent start'
    expect "install: writes no configuration and makes no account" not grep -E '^(seed|user|group|folder)' /tmp/installed
    expect "install: does not ask for pairing" not grep request-pairing /tmp/installed
    expect "run, without pairing again" within 10 runs_as nobody
    ;;
uninstall)
    boot
    expect "ping" within 10 pings
    # Those of the administrator would stay.
    rm /opt/ctrl-exec-scripts/*
    expect "uninstall --purge" ctrl-exec uninstall --purge
    expect "nothing runs" not pidof ctrl-exec-agent ctrl-exec-exec ctrl-exec
    same "nothing is left" "" "$(find / -xdev -name '*ctrl-exec*' ! -path '/checks/*' ! -path '/mnt/*' ! -path '/proc/*'; find /tmp/ -name '*ctrl-exec*' ! -path '/tmp/procd/*')"
    same "no account is left" "" "$(grep ctrl-exec /etc/passwd /etc/group /etc/shadow)"
    ;;
esac
finish
