# Empty on the device itself; the directory of the image where an image is built.
root=${IPKG_INSTROOT:-}
[ ! -s "$root/lib/functions.sh" ] || . "$root/lib/functions.sh"
export root pkgname=@PACKAGE@

id_of() { # file, name
    sed -n "s/^$2:[^:]*:\([0-9]*\):.*/\1/p" "$root/etc/$1" | head -n 1
}

# OpenWrt's own way (Require-User of the package) where its functions are there; else two lines with a number that nobody has.
account() { # name
    if command -v add_group_and_user >/dev/null 2>&1; then
        add_group_and_user "$pkgname" || true
    fi
    [ -z "$(id_of passwd "$1")" ] || return 0
    id=9443
    while grep -q "^[^:]*:[^:]*:$id:" "$root/etc/passwd" "$root/etc/group"; do id=$((id + 1)); done
    [ -n "$(id_of group "$1")" ] || echo "$1:x:$id:" >>"$root/etc/group"
    echo "$1:x:$id:$(id_of group "$1"):$1:/var/run/$1:/bin/false" >>"$root/etc/passwd"
    if [ -f "$root/etc/shadow" ] && ! grep -q "^$1:" "$root/etc/shadow"; then
        echo "$1:x:0:0:99999:7:::" >>"$root/etc/shadow"
    fi
}

# Numbers, because names of the image mean nothing where it is built. Its builder need not be root.
give() { # user, group, file
    uid=0 gid=0
    [ "$1" = root ] || uid=$(id_of passwd "$1")
    [ "$2" = root ] || gid=$(id_of group "$2")
    chown "$uid:$gid" "$3" || [ -n "$root" ]
}

# Owner and mode of what lies in it stay. Some of these directories lie in one that belongs to a service: what that has put there instead of a
# directory (a link to one of root's) must not get the service's owner. So it is entered first, and changed only if it is where it should be.
directory() { # mode, user, group, path
    mkdir -p "$root$4" 2>/dev/null || true
    if (cd -P "$root$4" 2>/dev/null && { [ -n "$root" ] || [ "$(pwd -P)" = "$4" ]; } && give "$2" "$3" . && chmod "$1" .); then return 0; fi
    echo "ctrl-exec: $4 is a link, or no directory: its owner and mode are left as they are" >&2
}

# A first configuration, where there is none of either form.
seed() { # example, target, mode, group, file of the original
    if [ ! -e "$root$2" ] && [ ! -e "$root$5" ]; then
        cp "$root/usr/share/ctrl-exec/examples/$1" "$root$2"
        give root "$4" "$root$2"
        chmod "$3" "$root$2"
    fi
}

service() { # name, action
    if [ -n "$root" ]; then
        sh "$root/etc/rc.common" "$root/etc/init.d/$1" "$2"
    else
        "/etc/init.d/$1" "$2"
    fi
}
