# Owner and mode of what lies in it stay.
directory() { # mode, user, group, path
    mkdir -p "$4"
    chown "$2:$3" "$4"
    chmod "$1" "$4"
}

# A first configuration, where there is none of either form.
seed() { # example, target, mode, group, file of the original
    if [ ! -e "$2" ] && [ ! -e "$5" ]; then
        cp "/usr/share/ctrl-exec/examples/$1" "$2"
        chown "root:$4" "$2"
        chmod "$3" "$2"
    fi
}
