#!/bin/sh
# What openrc.sh runs as the first process of its little host.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
. /checks/lib.sh
. /checks/host.sh
hostname web1.test
ip link set lo up
syslogd -O /var/log/messages

# Stand-ins for what a real host has, and what OpenRC makes when it boots.
for dir in daemons exclusive failed hotplugged inactive options prefix scheduled started starting stopped stopping tmp wasinactive; do
    mkdir -p /run/openrc/$dir
done
: >/etc/insserv.conf
mkdir -p /etc/pam.d
printf 'account required pam_permit.so\nsession required pam_permit.so\n' >/etc/pam.d/supervise-daemon
ln -s ../run /var/run
for name in localmount net logger; do
    printf '#!/sbin/openrc-run\nstart() { :; }\nstop() { :; }\n' >/etc/init.d/$name
    chmod 755 /etc/init.d/$name
done
touch /run/openrc/softlevel
echo "openrc: $(openrc --version 2>&1 | head -n 1)"

# With a deadline: a service that never comes up shall fail here, by its name.
service() { # name verb
    timeout 60 rc-service "ctrl-exec-$1" "$2" 2>&1
}
# Numbers of the processes whose words begin with these.
processes() { # words
    for dir in /proc/[0-9]*; do
        words=$(tr '\0' ' ' <"$dir/cmdline" 2>/dev/null) || continue
        case $words in "$1"*) echo "${dir#/proc/}" ;; esac
    done
}
runs() { [ -n "$(processes "$1")" ]; }
# The services themselves, not their supervisors. Of the executor's processes the first is the one that listens.
agent() { processes '/usr/bin/ctrl-exec-agent serve' | sort -n | head -n 1; }
executor() { processes '/usr/sbin/ctrl-exec-exec serve' | sort -n | head -n 1; }
api() { processes '/usr/bin/ctrl-exec-api' | sort -n | head -n 1; }
pings() { ced ping web1.test | grep -q -E '^web1.test +ok '; }
is_gone() { [ -z "$($1)" ]; }
is_back() { [ -n "$($1)" ] && [ "$($1)" != "$2" ]; }
logged() { grep -q "$1" /var/log/messages; }
count() { grep -c "$1" /var/log/messages; }

# The installation: platform and service manager are found by looking, all roles at once.
mkdir -p /etc/runlevels/default
expect "install: says that it would" install_here all --dry-run
same "install --dry-run writes nothing" "" "$(find /etc /usr /var/lib -name '*ctrl-exec*')"
cp /tmp/installed /tmp/announced
expect "install" install_here all
same "install does what the dry run has said" "$(cat /tmp/announced)" "$(cat /tmp/installed)"
has "install: enables, and says what comes next" "$(cat /tmp/installed)" \
    'Enabled: ctrl-exec-exec, ctrl-exec-agent, ctrl-exec-maintenance, ctrl-exec-api' request-pairing 'rc-service ctrl-exec-agent start'
same "install: started at the next boot" "ctrl-exec-agent ctrl-exec-api ctrl-exec-exec ctrl-exec-maintenance" "$(cd /etc/runlevels/default && echo *)"
expect "install: again" install_here all
same "install: and nothing is left to do" "Nothing to do." "$(head -n 1 /tmp/installed)"
expect_agent_layout /var/lib/ctrl-exec-agent
add_scripts

# Not paired: no start, one message.
said=$(service agent start)
expect "an unpaired agent is not started" not test $? = 0
same "and says so once" 1 "$(printf '%s\n' "$said" | grep -c 'not paired yet')"
expect "nothing runs" is_gone agent

set_up_dispatcher >/tmp/setup 2>&1 || cat /tmp/setup
expect "the host pairs with itself" pair_here

# A configuration with a mistake. A newer OpenRC has already started the executor for the agent that was not.
service exec stop >/dev/null
cp -p /etc/ctrl-exec-agent/agent.toml /tmp/good
break_it() { echo 'nonsense = 1' | cat - /tmp/good >/etc/ctrl-exec-agent/agent.toml; }
mend_it() { cat /tmp/good >/etc/ctrl-exec-agent/agent.toml; }
break_it
for name in agent exec; do
    said=$(service $name start)
    expect "$name: a broken configuration is not started" not test $? = 0
    has "$name: and the mistake is shown" "$said" nonsense 'have errors'
done
expect "nothing runs" is_gone agent
mend_it

# The good case.
expect "the executor starts" service exec start
expect "the agent starts" service agent start
expect "ping" within 5 pings
if grep -q -e --notify /lib/rc/sh/supervise-daemon.sh; then
    # Our READY is what this OpenRC waits for. (It is not used, because OpenRC leaves its socket behind and the next start fails.)
    service exec stop >/dev/null
    cp /etc/conf.d/ctrl-exec-exec /tmp/conf.d
    echo 'notify=socket:ready' >>/etc/conf.d/ctrl-exec-exec
    expect "the executor starts, waited for" service exec start
    same "a run at once" nobody "$(ced run web1.test who 2>/tmp/err | grep -x nobody)"
    service exec stop >/dev/null
    cp /tmp/conf.d /etc/conf.d/ctrl-exec-exec
    rm -f /run/openrc/supervise-ctrl-exec-exec.sock
    expect "and starts without" service exec start
    expect "a run" within 5 sh -c 'ced run web1.test who | grep -q nobody'
fi
same "a run goes through the executor to its user" nobody "$(ced run web1.test who 2>/tmp/err | grep -x nobody)"
same "the agent's user" ctrl-exec-agent "$(stat -c %U "/proc/$(agent)")"
same "the socket's directory" "711 root:root" "$(stat -c '%a %U:%G' /run/ctrl-exec-agent)"
same "the state directory" "750 ctrl-exec-agent:ctrl-exec-agent" "$(stat -c '%a %U:%G' /var/lib/ctrl-exec-agent)"
expect "status" service agent status
same "no core files: its memory holds the key" "0" "$(sed -n 's/^Max core file size *\([0-9]*\).*/\1/p' "/proc/$(agent)/limits")"

# Reload: the same process with new files.
before=$(agent) executor_before=$(executor)
printf '#!/bin/sh\necho fresh\n' >/opt/ctrl-exec-scripts/fresh.sh
chmod 755 /opt/ctrl-exec-scripts/fresh.sh
printf '[scripts.fresh]\npath = "/opt/ctrl-exec-scripts/fresh.sh"\n' >>/etc/ctrl-exec-agent/scripts.toml
expect "reload of the agent" service agent reload
expect "reload of the executor" service exec reload
fresh() { ced run web1.test fresh | grep -q -x fresh; }
expect "the new script is known" within 5 fresh
same "reload keeps the agent's process" "$before" "$(agent)"
same "reload keeps the executor's process" "$executor_before" "$(executor)"

# Mistakes do no harm to what runs.
break_it
said=$(service agent reload)
expect "a reload into a mistake fails" not test $? = 0
has "and shows it" "$said" nonsense
said=$(service agent restart)
expect "so does a restart" not test $? = 0
service exec restart >/dev/null
same "the agent runs on" "$before" "$(agent)"
same "the executor runs on" "$executor_before" "$(executor)"
expect "and answers" pings
mend_it

# Crashes.
kill -9 "$before"
kill -9 "$executor_before"
expect "a killed agent is back" within 15 is_back agent "$before"
expect "a killed executor is back" within 15 is_back executor "$executor_before"
expect "and both work" within 5 sh -c 'ced run web1.test who | grep -q nobody'

# Stop while an asynchronous run goes on that the executor keeps: it ends with the executor, not with the agent.
ced run web1.test slow --async -- 4 >/tmp/async 2>&1
expect "an asynchronous run is taken" grep -q -i accepted /tmp/async
reqid=$(grep -o -E '[0-9a-f]{16}' /tmp/async | head -n 1)
expect "the agent stops" service agent stop
expect "it is gone" is_gone agent
expect "the run goes on" runs 'sleep 4'
expect "the agent starts again" service agent start
has "and has the result" "$(ced wait "$reqid" --timeout 20 2>&1; ced status "$reqid" 2>&1)" exit:0

# The same without an executor: the run has a supervisor of its own.
sed '/^executor_socket/d' /tmp/good >/etc/ctrl-exec-agent/agent.toml
expect "restart" service agent restart
expect "ping" within 5 pings
ced run web1.test slow --async -- 5 >/tmp/async 2>&1
reqid=$(grep -o -E '[0-9a-f]{16}' /tmp/async | head -n 1)
expect "a run without an executor goes on" within 5 runs 'sleep 5'
expect "the agent stops" service agent stop
expect "the run goes on without it" runs 'sleep 5'
expect "the agent starts again" service agent start
has "and has the result" "$(ced wait "$reqid" --timeout 20 2>&1; ced status "$reqid" 2>&1)" exit:0
mend_it

# A service that cannot live is given up. Root, who asks before the start, can read the key; the agent cannot.
expect "the agent stops" service agent stop
printf 'respawn_delay=1\nrespawn_max=2\nrespawn_period=60\n' >>/etc/conf.d/ctrl-exec-agent
chmod 600 /etc/ctrl-exec-agent/agent.key
service agent start >/dev/null
gives_up() { is_gone agent && ! runs 'supervise-daemon ctrl-exec-agent'; }
expect "an agent that cannot read its key is given up" within 15 gives_up
chmod 640 /etc/ctrl-exec-agent/agent.key
service agent zap >/dev/null
expect "and starts when it can" service agent start
expect "ping" within 10 pings

# A newer program: what runs is restarted, with nothing lost.
before=$(agent) executor_before=$(executor)
echo >>/checks/ctrl-exec
expect "install: a newer program" install_here all
expect "install: it runs" cmp /checks/ctrl-exec "/proc/$(agent)/exe"
expect "install: the agent was restarted" is_back agent "$before"
expect "install: the executor was restarted" is_back executor "$executor_before"
expect "a run" within 10 sh -c 'ced run web1.test who | grep -q nobody'

# API and maintenance.
for name in api maintenance; do service $name stop >/dev/null; done
cp -p /etc/ctrl-exec/ctrl-exec.toml /tmp/dispatcher
echo 'nonsense = 1' >>/etc/ctrl-exec/ctrl-exec.toml
for name in api maintenance; do
    said=$(service $name start)
    expect "$name: a broken configuration is not started" not test $? = 0
    has "$name: and the mistake is shown" "$said" nonsense
done
cat /tmp/dispatcher >/etc/ctrl-exec/ctrl-exec.toml
for name in api maintenance; do expect "$name starts" service $name start; done
health() { printf 'GET /health HTTP/1.0\r\n\r\n' | nc -w 5 127.0.0.1 7445 | grep -q '^HTTP'; }
expect "the API answers" within 10 health
before=$(api)
expect "reload of the API" service api reload
same "keeps its process" "$before" "$(api)"
expect "and answers" within 5 health
expect "a pass of maintenance at once" service maintenance reload
expect "is made" within 10 logged 'ACTION=maintain AGENTS=1'

no_program() { ! runs /usr/bin/ctrl-exec && ! runs /usr/sbin/ctrl-exec; }
# The end leaves nothing.
for name in maintenance api agent exec; do expect "$name stops" service $name stop; done
expect "no process is left" within 3 no_program
expect "no supervisor is left" not runs supervise-daemon
expect "no socket is left" test ! -e /run/ctrl-exec-agent/exec.sock
same "no pid file is left" "" "$(find /run -name '*ctrl-exec*.pid')"
[ "${failed:?}" = 0 ] || tail -n 40 /var/log/messages
finish
