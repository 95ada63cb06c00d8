# Sourced: small hosts to try services on, made of busybox and the static binary, and a fleet of one on them. `ctrl-exec install` does there
# what it does on a real one; only scripts, and what of a system it looks at, are put there by hand.

# make_root DIR SYSTEM: what every system has (alpine, openwrt), and how each is told from the others. Nothing of ctrl-exec but the file to
# install, outside of every search path.
make_root() {
    for _dir in bin sbin usr/bin usr/sbin etc/init.d dev proc sys tmp var/lib var/log root checks; do mkdir -p "$1/$_dir"; done
    chmod 1777 "$1/tmp"
    cp "$(command -v busybox)" "$1/bin/busybox"
    for _name in $("$1/bin/busybox" --list); do
        [ -e "$1/bin/$_name" ] || [ -e "$1/sbin/$_name" ] || ln -s busybox "$1/bin/$_name"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$1/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$1/etc/group"
    printf 'root::0:0:99999:7:::\nnobody:*:0:0:99999:7:::\n' >"$1/etc/shadow"
    chmod 600 "$1/etc/shadow"
    printf '127.0.0.1 localhost web1.test web1\n' >"$1/etc/hosts"
    make_devices "$1/dev"
    cp "${repo:?}"/dist/checks/*.sh "$1/checks/"
    cp "$(binary)" "$1/checks/ctrl-exec" || return 1
    chmod 755 "$1/checks/ctrl-exec"
    case $2 in
    alpine)
        echo 3.22.0 >"$1/etc/alpine-release"
        mkdir -p "$1/run"
        ;;
    openwrt)
        # /var is the RAM disk, there is no /run, and no /opt.
        printf "DISTRIB_ID='OpenWrt'\nDISTRIB_RELEASE='24.10.0'\nDISTRIB_ARCH='x86_64'\n" >"$1/etc/openwrt_release"
        rm -r "${1:?}/var"
        ln -s tmp "$1/var"
        cp "$1/checks/procd-stub.sh" "$1/etc/rc.common"
        cp "$1/checks/uci-stub.sh" "$1/sbin/uci"
        printf '#!/bin/sh\nexit 1\n' >"$1/sbin/procd"
        # shellcheck disable=SC2016
        printf '#!/bin/sh\necho "$*" >>/tmp/ubus\n' >"$1/sbin/ubus"
        chmod 755 "$1/sbin/uci" "$1/sbin/procd" "$1/sbin/ubus"
        # The part that every package of a base system has: accounts outlive a new firmware.
        mkdir -p "$1/lib/upgrade/keep.d" "$1/etc/rc.d"
        printf '# base-files\n/etc/hosts\n/etc/group\n/etc/passwd\n/etc/shadow\n' >"$1/lib/upgrade/keep.d/base-files-essential"
        ;;
    esac
}

make_devices() { # directory
    mknod -m 666 "$1/null" c 1 3
    mknod -m 666 "$1/zero" c 1 5
    mknod -m 666 "$1/random" c 1 8
    mknod -m 666 "$1/urandom" c 1 9
    mknod -m 666 "$1/tty" c 5 0
}

# The rest is for inside.

# As a user does: the file is copied to the host, and told its role. What it says stands in /tmp/installed.
install_here() { # role, options
    cp /checks/ctrl-exec /tmp/ctrl-exec-new && /tmp/ctrl-exec-new install --role "$@" >/tmp/installed 2>&1
    _installed=$?
    rm -f /tmp/ctrl-exec-new
    cat /tmp/installed
    return "$_installed"
}

# Owner and mode of what an agent has.
expect_agent_layout() { # state directory
    same "install: /etc/ctrl-exec-agent" "750 root:ctrl-exec-agent" "$(stat -c '%a %U:%G' /etc/ctrl-exec-agent)"
    same "install: agent.toml" "640 root:ctrl-exec-agent" "$(stat -c '%a %U:%G' /etc/ctrl-exec-agent/agent.toml)"
    same "install: the state directory" "750 ctrl-exec-agent:ctrl-exec-agent" "$(stat -c '%a %U:%G' "$1")"
    same "install: the directory of jobs" "750 ctrl-exec-agent:ctrl-exec-agent" "$(stat -c '%a %U:%G' "$1/runs")"
    same "install: the scripts' directory" "755 root:ctrl-exec-agent" "$(stat -c '%a %U:%G' /opt/ctrl-exec-scripts)"
}

# What the administrator writes.
add_scripts() {
    cat >>/etc/ctrl-exec-agent/scripts.toml <<'END'
[scripts.who]
path = "/opt/ctrl-exec-scripts/who.sh"

[scripts.slow]
path = "/opt/ctrl-exec-scripts/slow.sh"
END
    printf '#!/bin/sh\nid -un\n' >/opt/ctrl-exec-scripts/who.sh
    # shellcheck disable=SC2016
    printf '#!/bin/sh\nsleep "${1:-3}"\necho slept\n' >/opt/ctrl-exec-scripts/slow.sh
    chmod 755 /opt/ctrl-exec-scripts/*.sh
}

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
