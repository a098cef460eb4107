#!/bin/sh
# Runs QEMU's guest agent on a port. The host can only ask questions, and cannot change anything.
#
#   guest:  guest-agent.sh /mnt/vcon/by-name/org.qemu.guest_agent.0 [COMMAND...]
#   host:   echo '{"execute": "guest-get-osinfo"}' | socat -t 5 - UNIX-CONNECT:/run/agent.sock
#
# COMMANDs, like guest-shutdown, are allowed as well. The host and the port may come and go.
set -eu

if [ $# -lt 1 ]; then
    echo "usage: guest-agent.sh PORT [COMMAND...]" >&2
    exit 2
fi
command -v qemu-ga >/dev/null || { echo "guest-agent.sh: install qemu-guest-agent" >&2 && exit 1; }
port=$1
shift

state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT

printf '%s\n' guest-ping guest-info guest-sync guest-sync-delimited guest-get-osinfo \
    guest-get-host-name guest-get-time guest-get-timezone guest-get-users \
    guest-network-get-interfaces "$@" >"$state/allowed"
blocked=$(qemu-ga --block-rpcs=help | grep -Fvx -f "$state/allowed" | paste -s -d , -)

qemu-ga --method=virtio-serial --path="$port" --retry-path --block-rpcs="$blocked" \
    --statedir="$state" --pidfile="$state/pid" &
agent=$!
trap 'kill "$agent"' INT TERM
wait "$agent" || wait "$agent" # a signal ends the first one
