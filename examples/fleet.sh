#!/bin/sh
# Asks all guests at once who is logged in, to lock their sessions, or which system they have.
#
#   guest:  fleet.sh answer /mnt/vcon/by-name/org.example.fleet
#   host:   fleet.sh who|lock|system /srv/guests
#
# A guest without vconfs answers at the file of its kernel: /dev/virtio-ports/org.example.fleet.
# The host end shows its side as files: vconfs host --mount /srv/guests --port
# org.example.fleet=mount … An answer is one line, and each guest has 10 seconds for it.
set -eu
if [ $# -ne 2 ] || [ ! -e "$2" ]; then
    echo "usage: fleet.sh who|lock|system GUESTS, or fleet.sh answer PORT" >&2
    exit 2
fi
if [ "$1" = answer ]; then
    exec 3<>"$2"
    while [ -e "$2" ]; do # one question after the other
        read -r question <&3 || { sleep 1; continue; } # no host asks
        case $question in
        who) who | awk '{ print $1 }' | sort -u ;;
        lock) loginctl lock-sessions && echo locked ;;
        system) sed -n 's/^PRETTY_NAME=//p' /etc/os-release ;;
        *) echo 'it is who, lock or system' ;;
        esac 2>&1 | paste -s -d ' ' - >&3 || :
    done
    exit
fi
for guest in "$2"/*/; do
    (
        port=${guest}by-name/org.example.fleet answer='it does not listen'
        if [ "$(getfattr --only-values -n user.guest "$port" 2>/dev/null)" = 1 ]; then
            exec 3<>"$port"
            echo "$1" >&3
            # shellcheck disable=SC2016 # $a is of the inner shell
            answer=$(timeout 10 sh -c 'read -r a && printf %s "$a"' <&3) || answer='no answer'
        fi
        echo "$(basename "$guest"): $answer"
    ) &
done
wait
