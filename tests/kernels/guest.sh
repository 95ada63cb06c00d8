#!/bin/busybox sh
# Runs as the first process of a small machine with an old or new kernel (dist/kernels.sh): does a profile give there what it says?
b=/bin/busybox
$b mkdir -p /proc /sys /dev /tmp /run /etc/ctrl-exec-agent /opt/scripts /var/lib /var/tmp /root /srv/open /srv/shut /usr/bin /usr/sbin
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mount -t tmpfs -o mode=0755 run /run
$b mount -t tmpfs -o mode=1777,nosuid,nodev tmp /tmp
$b mount -t tmpfs -o nosuid,nodev,noexec open /srv/open
$b --install -s /bin
mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null
ln -s /sbin/ctrl-exec /sbin/ctrl-exec-exec
ip link set lo up
chmod 755 / /etc /etc/ctrl-exec-agent /opt /opt/scripts /srv /run /sbin /bin
chown -R 0:0 /sbin /bin /opt /etc
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >/etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' >/etc/group
echo secret >/etc/ctrl-exec-agent/agent.key
chmod 600 /etc/ctrl-exec-agent/agent.key
echo "kernel-tests: begin $(uname -r)"
passed=0 failed=0
export CTRL_EXEC_LOG=stderr

script() { # name, text on stdin
    { echo '#!/bin/sh'; cat; } >/opt/scripts/$1
    chmod 755 /opt/scripts/$1
}
expect() { # what, pattern, script, args...
    what=$1 pattern=$2
    shift 2
    out=$(timeout 60 ctrl-exec-exec try /etc/ctrl-exec-agent/agent.conf /etc/ctrl-exec-agent/scripts.conf "$@" 2>&1)
    if echo "$out" | tr '\n' ' ' | grep -q -E "$pattern"; then
        passed=$((passed + 1))
        echo "ok   $what"
    else
        failed=$((failed + 1))
        echo "FAIL $what: expected '$pattern', got:"
        echo "$out" | sed 's/^/     /'
    fi
}

cat >/etc/ctrl-exec-agent/agent.conf <<'END'
port = 7443
cert = /etc/ctrl-exec-agent/agent.crt
key = /etc/ctrl-exec-agent/agent.key
ca = /etc/ctrl-exec-agent/ca.crt
script_dirs = /opt/scripts
[executor]
baseline = strict
[profile default]
run_as = nobody
[profile carve]
run_as = root
writable = /srv/open
[profile small]
run_as = nobody
memory_max = 16M
pids_max = 8
[profile brief]
run_as = nobody
timeout = 1
kill_grace = 1
[profile lonely]
run_as = nobody
network = none
[profile locked]
run_as = nobody
landlock = require
tcp_connect = none
END
for pair in status default hidden carve inside carve outside carve flags carve hog small forks small tree brief net lonely quick default land locked; do
    if [ -z "$name" ]; then name=$pair; else echo "$name = /opt/scripts/$name profile=$pair" >>/etc/ctrl-exec-agent/scripts.conf; name=; fi
done

echo 'grep -E "^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):" /proc/self/status; echo pid $$' | script status
echo 'exec 2>&1; cat /etc/ctrl-exec-agent/agent.key; ls /run; echo done' | script hidden
echo 'echo x >/srv/open/file && echo written; echo y >/tmp/t && echo tmp' | script inside
echo 'echo x >/srv/shut/file || echo refused; echo x >/proc/sys/kernel/core_pattern || echo pattern refused' | script outside
echo 'grep " /srv/open " /proc/self/mountinfo' | script flags
echo 'dd if=/dev/zero bs=40M count=1 of=/dev/null 2>/dev/null; echo survived' | script hog
echo 'i=0; while [ $i -lt 30 ]; do sleep 2 & i=$((i+1)); done; wait; echo done' | script forks
echo 'trap "" TERM; i=0; while [ $i -lt 20 ]; do (setsid sh -c "trap \"\" TERM; sleep 77") & i=$((i+1)); done; sleep 77' | script tree
echo 'ip link; wget -q -T 2 -O- http://127.0.0.1:1/ || echo no network' | script net
echo 'echo quick' | script quick
echo 'nc -w 1 127.0.0.1 1 </dev/null || echo no connection' | script land

expect "identity, capabilities, filter" 'Uid:.65534.*CapBnd:.0000000000000000.*NoNewPrivs:.1.*Seccomp:.2' status
expect "a process namespace" 'pid [2-9] ' status
expect "the agent's key is out of sight for root" "(can't open|Permission denied|No such).*done" hidden
expect "carve-outs can be written to" 'written.*tmp' inside
expect "nothing else can" 'refused.*pattern refused' outside
expect "carve-outs keep nosuid, nodev, noexec" 'rw,nosuid,nodev,noexec' flags
expect "memory is bounded" 'exit 126, out of memory' hog
expect "processes are bounded" "(can't fork|Resource temporarily)" forks
expect "a tree that ignores SIGTERM ends" 'timed out after 1s' tree
sleep 1
if pidof sleep >/dev/null; then failed=$((failed + 1)); echo "FAIL processes are left: $(pidof sleep)"; else passed=$((passed + 1)); echo "ok   and nothing of it is left"; fi
expect "no network" 'no network' net
if [ -n "$(ls /sys/fs/cgroup/ctrl-exec/runs 2>/dev/null | grep run-)" ]; then failed=$((failed + 1)); echo "FAIL cgroups are left"; else passed=$((passed + 1)); echo "ok   no group is left"; fi
case $(uname -r) in
    5.*) expect "Landlock is required and not there: refused" 'landlock.*' land ;;
    6.1.*) expect "Landlock has no ports yet: refused" 'landlock.*' land ;;
    *) expect "Landlock refuses the port" 'no connection' land ;;
esac
ctrl-exec-exec check --kernel
echo "kernel-tests: $passed passed, $failed failed"
poweroff -f
