# A system account with a group of its own and nothing to log in with. One that exists is left as it is.
account() { # name, description, sysusers file
    if command -v systemd-sysusers >/dev/null 2>&1; then
        systemd-sysusers "$3"
    fi
    if ! getent group "$1" >/dev/null; then
        addgroup --quiet --system "$1"
    fi
    if ! getent passwd "$1" >/dev/null; then
        adduser --quiet --system --ingroup "$1" --no-create-home --home /nonexistent --shell /usr/sbin/nologin --gecos "$2" "$1"
    fi
}

# Owner and mode of what lies in it stay. Some of these directories lie in one that belongs to a service: what that has put there instead of a
# directory (a link to one of root's) must not get the service's owner. So it is entered first, and changed only if it is where it should be.
directory() { # mode, user, group, path
    mkdir -p "$4" 2>/dev/null || true
    if (cd -P "$4" 2>/dev/null && [ "$(pwd -P)" = "$4" ] && chown "$2:$3" . && chmod "$1" .); then return 0; fi
    echo "ctrl-exec: $4 is a link, or no directory: its owner and mode are left as they are" >&2
}

# A first configuration, where there is none of either form.
seed() { # example, target, mode, group, file of the original
    if [ ! -e "$2" ] && [ ! -L "$2" ] && [ ! -e "$5" ] && [ -e "/usr/share/ctrl-exec/examples/$1" ]; then
        cp "/usr/share/ctrl-exec/examples/$1" "$2.dpkg-new"
        chown "root:$4" "$2.dpkg-new"
        chmod "$3" "$2.dpkg-new"
        mv "$2.dpkg-new" "$2"
    fi
}

running_systemd() {
    [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1
}

# On the first installation the unit is enabled; later what the administrator has chosen stays.
enable_unit() { # unit, version that was configured before
    deb-systemd-helper unmask "$1" >/dev/null || true
    if [ -z "$2" ]; then
        deb-systemd-helper enable "$1" >/dev/null || true
    elif [ -f "/etc/systemd/system/$1" ] || ! deb-systemd-helper --quiet was-enabled "$1"; then
        deb-systemd-helper update-state "$1" >/dev/null || true
    else
        deb-systemd-helper enable "$1" >/dev/null || true
    fi
}

is_active() {
    running_systemd && systemctl --quiet is-active "$1"
}

# A restart that fails says why: in the words of who was to do it, which a silent status would keep back.
restart_unit() { # unit, without .service
    if said=$(deb-systemd-invoke restart "$1.service" 2>&1); then
        echo "ctrl-exec: restarted $1 to apply the upgrade."
    else
        echo "ctrl-exec: $1 did NOT restart:" >&2
        quote "$said" >&2
        echo "ctrl-exec: journalctl -u $1 -n 20 shows more; then: systemctl restart $1" >&2
        return 1
    fi
}

# The words of a check, indented, for the person who upgrades.
quote() {
    printf '%s\n' "$1" | sed 's/^/    /'
}
