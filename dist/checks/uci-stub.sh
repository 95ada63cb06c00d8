#!/bin/sh
# Stands in for OpenWrt's uci: get, set, add_list, delete, changes, commit, on flat files in /tmp/uci. Lists are words in one value.
#   /tmp/uci/PACKAGE        lines KEY=VALUE, sections in their order
#   /tmp/uci/PACKAGE.changes, .commits
[ "$1" != -q ] || shift
verb=$1 word=${2:-}
key=${word%%=*} value=${word#*=}
package=${key%%.*}
file=/tmp/uci/$package
touch "$file" "$file.changes"
# firewall.@rule[2].name: the name of the third section of that type.
case $key in
*.@*\[*)
    type=${key#*.@} index=${key#*\[}
    type=${type%%\[*} index=${index%%\]*}
    section=$(sed -n "s/^\($package\.[A-Za-z0-9_]*\)=$type\$/\1/p" "$file" | sed -n "$((index + 1))p")
    [ -n "$section" ] || exit 1
    key=$section${key#*\]}
    ;;
esac
now=$(sed -n "s/^$key=//p" "$file")
case $verb in
get)
    grep -q "^$key=" "$file" || exit 1
    echo "$now"
    ;;
set)
    [ "$now" != "$value" ] || exit 0
    if grep -q "^$key=" "$file"; then sed -i "s|^$key=.*|$key=$value|" "$file"; else echo "$key=$value" >>"$file"; fi
    echo "$key=$value" >>"$file.changes"
    ;;
add_list)
    sed -i "/^$key=/d" "$file"
    echo "$key=${now:+$now }$value" >>"$file"
    echo "$key+=$value" >>"$file.changes"
    ;;
delete)
    grep -q -e "^$key=" -e "^$key\." "$file" || exit 1
    sed -i -e "/^$key=/d" -e "/^$key\./d" "$file"
    echo "-$key" >>"$file.changes"
    ;;
changes) cat "$file.changes" ;;
commit)
    : >"$file.changes"
    echo commit >>"$file.commits"
    ;;
*) exit 64 ;;
esac
