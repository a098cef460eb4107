#!/bin/sh
# A chat between guest and host, in plain shell.
#
#   host:   vconfs … --port chat=pipe:/run/chat …
#           chat.sh /run/chat.out /run/chat.in
#   guest:  chat.sh /mnt/vcon/by-name/chat
#
# It ends with your input (Ctrl-D), or when the other end hangs up.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: chat.sh PORT, or chat.sh FROM TO" >&2
    exit 2
fi
for file; do
    [ -e "$file" ] || { echo "chat.sh: $file does not exist" >&2 && exit 1; }
done
me=${CHAT_NAME:-$(id -un)@$(uname -n)}

cat "$1" &
reader=$!
trap 'kill "$reader" 2>/dev/null || :' EXIT
trap 'exit 1' HUP INT TERM

while IFS= read -r line; do
    printf '%s: %s\n' "$me" "$line"
done >"${2:-$1}"
