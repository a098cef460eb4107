#!/bin/sh
# Lets the host shut the guest down, reboot it, or log a user off.
#
#   guest:  power.sh /mnt/vcon/by-name/org.example.power      (mount with -o wait)
#   host:   echo 'logoff alice' | socat -t 5 - UNIX-CONNECT:/run/power.sock
#
# Each line from the host is "shutdown", "reboot" or "logoff USER"; the answer is a line: "ok",
# or "failed" and the reason. It ends when the port does.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: power.sh PORT" >&2
    exit 2
fi
port=$1

# obey WORD [USER]: do it, or print what is wrong
obey() {
    case $#:$1 in
    1:shutdown) systemctl --no-block poweroff ;;
    1:reboot) systemctl --no-block reboot ;;
    2:logoff) loginctl terminate-user -- "$2" ;;
    *) echo "it is shutdown, reboot or logoff USER" && false ;;
    esac
}

set -f # a "*" from the host must not become file names
exec 3<>"$port"
while [ -e "$port" ]; do # one host after the other
    while read -r word user <&3; do
        # shellcheck disable=SC2086 # no user, no argument
        if why=$(obey "$word" $user 2>&1); then answer=ok; else answer="failed: $why"; fi
        printf '%s\n' "$(printf %s "$answer" | tr '\n' ' ')" >&3 || :
    done
done
