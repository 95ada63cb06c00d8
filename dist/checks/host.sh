# Sourced: a small host to try services on, made of busybox and the static binary, and a fleet of one on it. What is below `install_by_hand`
# is what `ctrl-exec install` does on a real host.

# root DIR: programs, accounts, devices. Nothing of ctrl-exec yet.
make_root() {
    for _dir in bin sbin usr/bin usr/sbin etc dev proc sys run tmp var/lib var/log root opt; do mkdir -p "$1/$_dir"; done
    chmod 1777 "$1/tmp"
    cp "$(command -v busybox)" "$1/bin/busybox"
    for _name in $("$1/bin/busybox" --list); do
        [ -e "$1/bin/$_name" ] || [ -e "$1/sbin/$_name" ] || ln -s busybox "$1/bin/$_name"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nctrl-exec-agent:x:301:301:ctrl-exec agent service user:/nonexistent:/sbin/nologin\nctrl-exec:x:302:302:ctrl-exec dispatcher service user:/nonexistent:/sbin/nologin\n' >"$1/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\nctrl-exec-agent:x:301:\nctrl-exec:x:302:\n' >"$1/etc/group"
    printf '127.0.0.1 localhost web1.test web1\n' >"$1/etc/hosts"
    make_devices "$1/dev"
}

make_devices() { # directory
    mknod -m 666 "$1/null" c 1 3
    mknod -m 666 "$1/zero" c 1 5
    mknod -m 666 "$1/random" c 1 8
    mknod -m 666 "$1/urandom" c 1 9
    mknod -m 666 "$1/tty" c 5 0
}

# First configuration and scripts, as above.
seed() {
    cat >"$1/etc/ctrl-exec-agent/agent.toml" <<END
port = 7443
script_dirs = ["/opt/ctrl-exec-scripts"]
executor_socket = "$2"

[executor]
baseline = "strict"

[profile.default]
run_as = "nobody"
END
    cat >"$1/etc/ctrl-exec-agent/scripts.toml" <<'END'
[scripts.who]
path = "/opt/ctrl-exec-scripts/who.sh"

[scripts.slow]
path = "/opt/ctrl-exec-scripts/slow.sh"
END
    printf '#!/bin/sh\nid -un\n' >"$1/opt/ctrl-exec-scripts/who.sh"
    # shellcheck disable=SC2016
    printf '#!/bin/sh\nsleep "${1:-3}"\necho slept\n' >"$1/opt/ctrl-exec-scripts/slow.sh"
}

# The programs, the directories with owners and modes, and a first configuration. DIR, and where the executor's socket is.
install_by_hand() {
    cp "$(binary)" "$1/usr/bin/ctrl-exec" || return 1
    chmod 755 "$1/usr/bin/ctrl-exec"
    for _name in ced cea ctrl-exec-agent ctrl-exec-dispatcher ctrl-exec-api; do ln -sf ctrl-exec "$1/usr/bin/$_name"; done
    ln -sf ../bin/ctrl-exec "$1/usr/sbin/ctrl-exec-exec"
    mkdir -p "$1/etc/ctrl-exec-agent" "$1/opt/ctrl-exec-scripts" "$1/etc/ctrl-exec"
    chown 0:301 "$1/etc/ctrl-exec-agent" "$1/opt/ctrl-exec-scripts"
    chmod 0750 "$1/etc/ctrl-exec-agent" "$1/opt/ctrl-exec-scripts"
    chown 0:302 "$1/etc/ctrl-exec"
    chmod 2750 "$1/etc/ctrl-exec"
    # Files that are there stay as they are.
    [ -e "$1/etc/ctrl-exec-agent/agent.toml" ] || seed "$1" "$2"
    chown 0:301 "$1"/etc/ctrl-exec-agent/*.toml "$1"/opt/ctrl-exec-scripts/*.sh
    chmod 0640 "$1"/etc/ctrl-exec-agent/*.toml
    chmod 0750 "$1"/opt/ctrl-exec-scripts/*.sh
}

# The rest is for inside.

set_up_dispatcher() {
    ced setup-ca && ced setup-ctrl-exec --yes
}

# Pairs this host with itself.
pair_here() {
    ced pairing-mode start || return 1
    _id=$(cea request-pairing --background --dispatcher 127.0.0.1 --lookup-by ip --timeout 60 --yes) || return 1
    ced approve "$_id" && within 20 cea pairing-status
    _paired=$?
    ced pairing-mode stop
    return "$_paired"
}
