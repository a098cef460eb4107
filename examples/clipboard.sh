#!/bin/sh
# Shares the clipboard between guest and host: run it at both ends of one port.
#
#   host:   vconfs … --port org.example.clipboard=pipe:/run/clip …
#           clipboard.sh /run/clip.out /run/clip.in
#   guest:  clipboard.sh /mnt/vcon/by-name/org.example.clipboard
#
# With Wayland it is the session's clipboard, by wl-copy and wl-paste. With X it is also the
# session's, by xclip, which is run once a second. Elsewhere, or if CLIPBOARD names one, it is a
# file: what is written to it at one end appears at the other. Each content is sent over the port as
# one line of base64. It ends when the port does.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: clipboard.sh PORT, or clipboard.sh FROM TO" >&2
    exit 2
fi
for file; do
    [ -e "$file" ] || { echo "clipboard.sh: $file does not exist" >&2 && exit 1; }
done
from=$1 to=${2:-$1}
work=$(mktemp -d)
pids=
finish() {
    for pid in $pids; do kill "$pid" 2>/dev/null || :; done
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM
mkfifo "$work/changes" "$work/lines"
: >"$work/last"

if [ -z "${CLIPBOARD-}" ] && [ -n "${WAYLAND_DISPLAY-}" ] && command -v wl-paste >/dev/null; then
    get() { wl-paste --no-newline 2>/dev/null || :; }
    put() { wl-copy; }
    wl-paste --watch echo changed >"$work/changes" &
elif [ -z "${CLIPBOARD-}" ] && [ -n "${DISPLAY-}" ] && command -v xclip >/dev/null; then
    get() { xclip -selection clipboard -out 2>/dev/null || :; }
    put() { xclip -selection clipboard -in; }
    while sleep 1; do echo changed; done >"$work/changes" &
else
    command -v inotifywait >/dev/null || {
        echo "clipboard.sh: install wl-clipboard, xclip or inotify-tools" >&2
        exit 1
    }
    clipboard=${CLIPBOARD:-$HOME/.clipboard}
    [ -e "$clipboard" ] || : >"$clipboard"
    get() { cat "$clipboard"; }
    put() { cat >"$work/new" && cp "$work/new" "$clipboard"; }
    inotifywait -qm -e close_write,moved_to --format %f "${clipboard%/*}" >"$work/changes" &
fi
pids="$pids $!"

# Only new content is sent: not what came from the other end, and nothing twice.
{
    while read -r _; do
        get | base64 -w 0 >"$work/now"
        cmp -s "$work/now" "$work/last" && continue
        cp "$work/now" "$work/last"
        { cat "$work/now" && echo; } >&3
    done <"$work/changes"
} 3>"$to" &
pids="$pids $!"

cat "$from" >"$work/lines" &
pids="$pids $!"
while IFS= read -r line; do
    printf %s "$line" >"$work/last"
    printf %s "$line" | base64 -d | put
done <"$work/lines"
