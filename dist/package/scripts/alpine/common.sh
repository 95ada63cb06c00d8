# Owner and mode of what lies in it stay. Some of these directories lie in one that belongs to a service: what that has put there instead of a
# directory (a link to one of root's) must not get the service's owner. So it is entered first, and changed only if it is where it should be.
directory() { # mode, user, group, path
    mkdir -p "$4" 2>/dev/null || true
    if (cd -P "$4" 2>/dev/null && [ "$(pwd -P)" = "$4" ] && chown "$2:$3" . && chmod "$1" .); then return 0; fi
    echo "ctrl-exec: $4 is a link, or no directory: its owner and mode are left as they are" >&2
}

# A first configuration, where there is none of either form.
seed() { # example, target, mode, group, file of the original
    if [ ! -e "$2" ] && [ ! -e "$5" ]; then
        cp "/usr/share/ctrl-exec/examples/$1" "$2"
        chown "root:$4" "$2"
        chmod "$3" "$2"
    fi
}
