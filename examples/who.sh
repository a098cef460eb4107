#!/bin/sh
# Sends the host the users that are logged in: a line of names at the start and at each change.
#
#   guest:  who.sh /mnt/vcon/by-name/org.example.who [SOURCE]
#   host:   socat -u UNIX-CONNECT:/run/who.sock -
#
# Each line is a message; an empty one means that no user is logged in. SOURCE is a file like
# /run/utmp or, on systems that no longer have one, a folder like /run/systemd/users.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: who.sh PORT [SOURCE]" >&2
    exit 2
fi
for file; do
    [ -e "$file" ] || { echo "who.sh: $file does not exist" >&2 && exit 1; }
done
command -v inotifywait >/dev/null || { echo "who.sh: install inotify-tools" >&2 && exit 1; }
port=$1 source=${2:-/run/utmp}
if [ $# -eq 1 ] && [ ! -e "$source" ]; then
    source=/run/systemd/users
    [ -d "$source" ] || { echo "who.sh: no /run/utmp, no $source: name a SOURCE" >&2 && exit 1; }
fi

names() {
    if [ -d "$source" ]; then
        for user in "$source"/[0-9]*; do
            [ -e "$user" ] && id -nu "${user##*/}"
        done
    else
        who "$source" | awk '{ print $1 }'
    fi
}

told=none
tell() {
    users=$(names | sort -u | paste -s -d ' ' -)
    [ "$users" = "$told" ] && return
    printf '%s\n' "$users" >&3 && told=$users # if the port is throttled, try at the next change
}

exec 3>"$port"
# login and sshd write the file and close it; others write without closing.
inotifywait -m -e modify,close_write,moved_to,create,delete --format changed "$source" 2>&1 |
    while read -r line; do
        case $line in
        "Setting up watches.") ;;
        *) tell ;; # also "Watches established.": the first time
        esac
    done
