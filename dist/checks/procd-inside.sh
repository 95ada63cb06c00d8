#!/bin/sh
# What procd.sh runs as the first process of its little router.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
. /checks/lib.sh
. /checks/host.sh
hostname web1.test
ip link set lo up
mkdir -p /var/run /var/log /var/lib /tmp/procd
: >/tmp/procd/described
syslogd -O /var/log/messages
sleep 0.3

D=/tmp/procd/described
# act SERVICE ACTION: what procd is told stands in `told` afterwards, and the log lines in `lines`.
act() {
    : >$D
    before=$(wc -l </var/log/messages)
    sh /checks/procd-stub.sh "/etc/init.d/ctrl-exec-$1" "$2" >/tmp/said 2>&1 || echo "FAIL $1 $2: $(cat /tmp/said)"
    sleep 0.2
    told=$(cat $D)
    lines=$(tail -n +$((before + 1)) /var/log/messages | grep -v ' ACTION=')
}
uci_says() { echo "$1" >>/tmp/procd/config; }
uci_forget() { rm -f /tmp/procd/config; }
instances() { echo "$told" | grep -c '^instance'; }
log_lines() { printf '%s' "$lines" | grep -c .; }
set_param() { echo "$told" | sed -n "s/^$1 \{0,1\}//p"; }
running() { rm -f /tmp/procd/running; for name in "$@"; do echo "ctrl-exec-$name" >>/tmp/procd/running; done; }

# The installation: the platform is found by looking, all roles at once.
expect "install: says that it would" install_here all --dry-run
same "install --dry-run writes nothing" "" "$(find /etc /usr /lib -name '*ctrl-exec*')"
cp /tmp/installed /tmp/announced
expect "install" install_here all
same "install does what the dry run has said" "$(cat /tmp/announced)" "$(cat /tmp/installed)"
has "install: enables, and says what comes next" "$(cat /tmp/installed)" \
    'Enabled: ctrl-exec-exec, ctrl-exec-agent, ctrl-exec-maintenance, ctrl-exec-api' request-pairing '/etc/init.d/ctrl-exec-agent start'
same "install: nothing that is not set up was started" "" "$(grep '^instance' $D)"
same "install: started at the next boot" "S94ctrl-exec-exec S95ctrl-exec-agent S96ctrl-exec-api S96ctrl-exec-maintenance" "$(cd /etc/rc.d && echo S*)"
expect "install: again" install_here all
same "install: and nothing is left to do" "Nothing to do." "$(head -n 1 /tmp/installed)"
same "install: accounts have numbers of packages, and no shell" "65536 65537 /bin/false /bin/false" \
    "$(id -u ctrl-exec-agent) $(id -u ctrl-exec) $(sed -n 's/^ctrl-exec.*://p' /etc/passwd | tr '\n' ' ' | sed 's/ $//')"
same "install: accounts are locked" 2 "$(grep -c '^ctrl-exec[a-z-]*:!:' /etc/shadow)"
expect_agent_layout /etc/ctrl-exec-agent/state
same "install: the socket is where this system has such things" 'executor_socket = "/var/run/ctrl-exec-agent/exec.sock"' "$(grep ^executor_socket /etc/ctrl-exec-agent/agent.toml)"
expect "install: no port is opened unasked" test ! -e /etc/uci-defaults/99-ctrl-exec-firewall
add_scripts

# Sourcing alone, as a build host does for `enable`.
find / -xdev | grep -v -e '^/proc' -e '^/tmp' | sort >/tmp/before
for name in agent exec api maintenance; do
    act "$name" nothing
    same "$name: sourcing says nothing to procd" "" "$told"
done
find / -xdev | grep -v -e '^/proc' -e '^/tmp' | sort >/tmp/after
expect "sourcing writes nothing" cmp /tmp/before /tmp/after

# Not paired.
act agent start
same "an unpaired agent: no instance" 0 "$(instances)"
same "one log line" 1 "$(log_lines)"
has "which says what to do" "$lines" 'daemon.warn' ctrl-exec-agent 'not paired yet' request-pairing
same "but it wakes up with the configuration" "config.change ctrl-exec" "$(set_param trigger)"
same "its state directory survives a reboot" "750 ctrl-exec-agent:ctrl-exec-agent" "$(stat -c '%a %U:%G' /etc/ctrl-exec-agent/state)"
changed=$(stat -c %Z /etc/ctrl-exec-agent/state)
sleep 1.1
act agent start
same "and is not written again" "$changed" "$(stat -c %Z /etc/ctrl-exec-agent/state)"
mv /etc/ctrl-exec/ctrl-exec.toml /tmp/
for name in api maintenance; do
    act "$name" start
    same "$name without a configuration: no instance" 0 "$(instances)"
    same "$name: one log line" 1 "$(log_lines)"
done

mv /tmp/ctrl-exec.toml /etc/ctrl-exec/
set_up_dispatcher >/tmp/setup 2>&1 || cat /tmp/setup
expect "the host pairs with itself" pair_here

# The good case.
act exec start
same "executor: one instance" 1 "$(instances)"
same "executor: command" "/usr/sbin/ctrl-exec-exec serve /var/run/ctrl-exec-agent/exec.sock /etc/ctrl-exec-agent/agent.conf /etc/ctrl-exec-agent/scripts.conf ctrl-exec-agent" "$(set_param command)"
same "executor: root" "" "$(set_param user)"
same "executor: no core files, enough open files" "core=0 nofile=4096 4096" "$(set_param limits)"
same "executor: time to end its runs" 20 "$(set_param term_timeout)"
same "executor: respawn as the system has it" "respawn" "$(echo "$told" | grep '^respawn')"
same "executor: reload signal" 1 "$(set_param reload_signal)"
same "executor: the socket's directory" "711 root:root" "$(stat -c '%a %U:%G' /var/run/ctrl-exec-agent)"
act agent start
same "agent: one instance" 1 "$(instances)"
same "agent: command" "/usr/bin/ctrl-exec-agent serve" "$(set_param command)"
same "agent: user and group" "ctrl-exec-agent ctrl-exec-agent" "$(set_param user) $(set_param group)"
same "agent: reload signal" 1 "$(set_param reload_signal)"
same "agent: respawn as the system has it" "respawn" "$(echo "$told" | grep '^respawn')"
same "agent: no core files" "core=0" "$(set_param limits)"
same "agent: time for requests" 15 "$(set_param term_timeout)"
same "agent: no new privileges" 1 "$(set_param no_new_privs)"
same "agent: warnings go to the log" 1 "$(set_param stderr)"
same "agent: nothing is said in the log" 0 "$(log_lines)"
same "nothing that procd does not know" "" "$(echo "$told" | grep UNKNOWN)"

# What is described is also what works.
start_as() { # user, words
    # shellcheck disable=SC2086
    start-stop-daemon -S -b -c "$1" -x "$2" -- ${3:-}
}
start_as root /usr/sbin/ctrl-exec-exec "serve /var/run/ctrl-exec-agent/exec.sock /etc/ctrl-exec-agent/agent.conf /etc/ctrl-exec-agent/scripts.conf ctrl-exec-agent"
start_as ctrl-exec-agent /usr/bin/ctrl-exec-agent serve
runs_as() { ced run web1.test who | grep -q -x "$1"; }
expect "a run goes through the executor to its user" within 10 runs_as nobody

# Reload.
running agent exec
act agent reload
same "reload of a running agent: a signal and nothing else" "signal ctrl-exec-agent * 1" "$told"
cp -p /etc/ctrl-exec-agent/agent.toml /tmp/good
echo 'nonsense = 1' | cat - /tmp/good >/etc/ctrl-exec-agent/agent.toml
for name in agent exec; do
    act "$name" reload
    same "$name: so also with a mistake in a file" "signal ctrl-exec-$name * 1" "$told"
done
# Started with the mistake.
running
for name in agent exec; do
    act "$name" start
    same "$name with a mistake: no instance" 0 "$(instances)"
    same "$name: one log line" 1 "$(log_lines)"
    has "$name: with the mistake" "$lines" daemon.err nonsense
done
cat /tmp/good >/etc/ctrl-exec-agent/agent.toml
act agent reload
same "reload of an agent that does not run starts it" 1 "$(instances)"

# The switches of UCI.
for pair in agent:agent exec:executor api:api maintenance:maintenance; do
    name=${pair%:*} section=${pair#*:}
    uci_says "$section.enabled=0"
    act "$name" start
    same "$name disabled: no instance" 0 "$(instances)"
    same "$name disabled: no log line" 0 "$(log_lines)"
    running "$name"
    act "$name" reload
    same "$name disabled: reload stops it" "kill ctrl-exec-$name" "$told"
    running
    uci_forget
    expect "$name: the shipped configuration has its section" grep -q "^config service '$section'" /etc/config/ctrl-exec
done
# Where the agent asks is where the executor listens.
sed -i 's,^executor_socket.*,executor_socket = "/run/elsewhere/e.sock",' /etc/ctrl-exec-agent/agent.toml
act exec start
has "the executor listens where the agent asks" "$(set_param command)" 'serve /run/elsewhere/e.sock '
cat /tmp/good >/etc/ctrl-exec-agent/agent.toml

# A newer program: what runs is restarted, the executor first.
running agent exec
: >$D
echo >>/checks/ctrl-exec
expect "install: a newer program" install_here all
same "install: what runs is restarted" "ctrl-exec-exec ctrl-exec-agent" "$(sed -n 's/^kill //p' $D | tr '\n' ' ' | sed 's/ $//')"
expect "install: the newer one is in its place" cmp /checks/ctrl-exec /usr/bin/ctrl-exec
# What would not start again is not touched.
echo >>/checks/ctrl-exec
echo 'nonsense = 1' | cat - /tmp/good >/etc/ctrl-exec-agent/agent.toml
: >$D
expect "install: refuses if what runs would not start again" not install_here all
has "install: and says why" "$(cat /tmp/installed)" nonsense 'Nothing has been changed'
same "install: nothing was restarted" "" "$(cat $D)"
cat /tmp/good >/etc/ctrl-exec-agent/agent.toml
running

# After a reboot the RAM disk is empty. Whoever comes first, the API shares locks and records with root.
rm -rf /var/lib/ctrl-exec
same "a run of root's" nobody "$(ced run web1.test who 2>/tmp/err | grep -x nobody)"
echo 'api_auth_default = "allow"' >>/etc/ctrl-exec/ctrl-exec.toml
act api start
same "api: command and user" "/usr/bin/ctrl-exec-api ctrl-exec ctrl-exec" "$(set_param command) $(set_param user) $(set_param group)"
same "api: time for requests" 40 "$(set_param term_timeout)"
for dir in /var/lib/ctrl-exec /var/lib/ctrl-exec/locks /var/lib/ctrl-exec/runs; do
    same "api: $dir is shared with root" "2770 root:ctrl-exec" "$(stat -c '%a %U:%G' $dir)"
done
start_as ctrl-exec /usr/bin/ctrl-exec-api
asks() { # body: what POST /run answers
    printf 'POST /run HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %s\r\n\r\n%s' ${#1} "$1" | nc -w 20 127.0.0.1 7445
}
api_runs() { asks '{"hosts":["web1.test"],"script":"who"}' >/tmp/answer; grep -q nobody /tmp/answer; }
expect "api: runs the same script" within 10 api_runs
grep -q nobody /tmp/answer || cat /tmp/answer
act maintenance start
same "maintenance: command" "/usr/bin/ctrl-exec-dispatcher maintain --daemon" "$(set_param command)"
for name in api maintenance; do
    running "$name"
    act "$name" reload
    same "$name: reload is a signal" "signal ctrl-exec-$name * 1" "$told"
done

# Order: executor, agent; and the other way round at the end.
number() { sed -n "s/^$2=//p" "/etc/init.d/ctrl-exec-$1"; }
expect "the executor starts first" test "$(number exec START)" -lt "$(number agent START)"
expect "and stops last" test "$(number exec STOP)" -gt "$(number agent STOP)"

# The clock has been set.
hotplug() { (ACTION=$1; . /etc/hotplug.d/ntp/90-ctrl-exec); }
for action in step periodic unsync; do hotplug $action; done
expect "other events do nothing" test ! -e /tmp/ubus
hotplug stratum
same "stratum: HUP for the agent, if it runs" 'call service signal {"name":"ctrl-exec-agent","signal":1}' "$(cat /tmp/ubus)"
kill -HUP "$(pidof ctrl-exec-agent)"
reloaded() { grep -q 'ACTION=config-reload SCRIPTS=' /var/log/messages; }
expect "and HUP makes the real agent read everything anew" within 5 reloaded

# The firewall, on request.
mkdir -p /tmp/uci
firewall() { sh /checks/99-ctrl-exec-firewall; }
rules() { grep -c '=rule$' /tmp/uci/firewall; }
commits() { wc -l </tmp/uci/firewall.commits; }
expect "firewall: install --open-port" install_here agent --open-port
expect "firewall: its script has run, once" test ! -e /etc/uci-defaults/99-ctrl-exec-firewall
same "firewall: one rule, for the LAN" "Allow-ctrl-exec-agent-lan lan tcp 7443 ACCEPT" "$(for o in name src proto dest_port target; do uci get "firewall.@rule[0].$o"; done | tr '\n' ' ' | sed 's/ $//')"
same "firewall: only that one" 1 "$(rules)"
firewall
same "firewall: again, nothing is written" "1 rules, 1 commits" "$(rules) rules, $(commits) commits"
sed -i '1i port = 7555' /etc/ctrl-exec-agent/agent.toml
firewall
same "firewall: another port in agent.toml" "1 rules, 7555" "$(rules) rules, $(uci get 'firewall.@rule[0].dest_port')"
uci set ctrl-exec.firewall=firewall
uci set ctrl-exec.firewall.wan_access=1
uci add_list ctrl-exec.firewall.dispatcher=192.0.2.10
uci add_list ctrl-exec.firewall.dispatcher=192.0.2.11
firewall
same "firewall: the WAN when asked" "2 rules, wan, 192.0.2.10 192.0.2.11" "$(rules) rules, $(uci get 'firewall.@rule[1].src'), $(uci get 'firewall.@rule[1].src_ip')"
done_so_far=$(commits)
firewall
same "firewall: again, nothing is written" "2 rules, $done_so_far" "$(rules) rules, $(commits)"
uci set ctrl-exec.firewall.wan_access=0
firewall
same "firewall: and not any more" "1 rules, lan" "$(rules) rules, $(uci get 'firewall.@rule[0].src')"
# What an older release has left behind: the same rule twice.
for n in 1 2; do
    printf 'firewall.cfg%s=rule\nfirewall.cfg%s.name=Allow-ctrl-exec-agent\nfirewall.cfg%s.src=wan\nfirewall.cfg%s.dest_port=7443\n' $n $n $n $n >>/tmp/uci/firewall
done
firewall
same "firewall: rules of others stay" 3 "$(rules)"
expect "firewall: with a warning" within 2 grep -q "opens port 7555 to the WAN" /var/log/messages
uci set ctrl-exec.firewall.wan_access=1
firewall
same "firewall: and are not doubled" 3 "$(rules)"

# What a firmware upgrade keeps is all that cannot be made again.
kept() {
    find /etc/ctrl-exec /etc/ctrl-exec-agent /etc/ctrl-exec-install /opt/ctrl-exec-scripts -type f | while read -r file; do
        grep -v '^#' /lib/upgrade/keep.d/ctrl-exec | while read -r prefix; do
            case $file in "$prefix"*) echo yes ;; esac
        done | grep -q yes || echo "$file"
    done
}
same "sysupgrade keeps every file" "" "$(kept)"
expect "the trust map is among them" test -s /etc/ctrl-exec-agent/state/ctrl-exec-dispatchers
finish
