#!/bin/sh
# Sends the host the users that are logged in: a line of names at the start and at each change.
#
#   guest:  who.sh /mnt/vcon/by-name/org.example.who [UTMP]
#   host:   socat -u UNIX-CONNECT:/run/who.sock -
#
# Each line is a message; an empty one means that no user is logged in.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: who.sh PORT [UTMP]" >&2
    exit 2
fi
for file; do
    [ -e "$file" ] || { echo "who.sh: $file does not exist" >&2 && exit 1; }
done
port=$1 utmp=${2:-/run/utmp}

told=none
tell() {
    users=$(who "$utmp" | awk '{ print $1 }' | sort -u | paste -s -d ' ' -)
    [ "$users" = "$told" ] && return
    printf '%s\n' "$users" >&3 && told=$users # if the port is throttled, try at the next change
}

exec 3>"$port"
# login and sshd write the file and close it; others write without closing.
inotifywait -m -e modify,close_write --format changed "$utmp" 2>&1 |
    while read -r line; do
        case $line in
        "Setting up watches.") ;;
        *) tell ;; # also "Watches established.": the first time
        esac
    done
