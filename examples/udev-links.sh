#!/bin/sh
# Keeps DIR/NAME -> MOUNTPOINT/vconNN for every named port of a vconfs mount, as udev does for
# /dev/virtio-ports: right after a port comes, is renamed or goes. Ends when the mount does.
#
#   udev-links.sh MOUNTPOINT DIR
#
# It needs nothing of vconfs: inotifywait tells of changes, getfattr of names. A name has its
# "/" written as "%2F", "%" as "%25"; of two ports of one name the one with the lowest number has
# the link. udev-links.service beside it is a unit that runs it with its mount.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: udev-links.sh MOUNTPOINT DIR" >&2
    exit 2
fi
mount=$1 dir=$2
if ! getfattr --absolute-names --only-values -n user.pid "$mount" >/dev/null 2>&1; then
    echo "udev-links.sh: $mount is not a vconfs mount" >&2
    exit 1
fi
mkdir -p "$dir"

# name_of FILE: the link's name for a port; nothing where it has none, or one that is no file name
name_of() {
    getfattr --absolute-names --only-values -n user.name "$1" 2>/dev/null |
        sed -e 's/%/%25/g' -e 's,/,%2F,g' -e 's/^\.$/%2E/' -e 's/^\.\.$/%2E%2E/'
}

# ports: the numbers of the ports that are there, in order
ports() {
    for file in "$mount"/vcon*; do
        [ -e "$file" ] && echo "${file##*/vcon}"
    done | sort -n
}

# update: make the links what they should be; only what differs is touched
update() {
    wanted=
    newline='
'
    for id in $(ports); do
        name=$(name_of "$mount/vcon$id")
        [ -n "$name" ] || continue
        case $newline$wanted in *"$newline$name$newline"*) continue ;; esac
        wanted=$wanted$name$newline
        target=$mount/vcon$id
        [ "$(readlink "$dir/$name" || :)" = "$target" ] && continue
        if [ -e "$dir/$name" ] && [ ! -L "$dir/$name" ]; then
            echo "udev-links.sh: $dir/$name is no link: left alone" >&2
            continue
        fi
        ln -s "$target" "$dir/.new-$$" && mv -f "$dir/.new-$$" "$dir/$name"
    done
    for link in "$dir"/* "$dir"/.[!.]*; do
        case $(readlink "$link" || :) in "$mount"/vcon*) ;; *) continue ;; esac
        case $newline$wanted in *"$newline${link##*/}$newline"*) ;; *) rm -f "$link" ;; esac
    done
}

events=$dir/.events-$$
mkfifo "$events"
inotifywait -m -e create,delete,attrib,unmount --format '%e %f' "$mount" >"$events" 2>&1 &
watcher=$!
trap 'kill "$watcher" 2>/dev/null || :; rm -f "$events"' EXIT
trap 'exit 1' HUP INT TERM

# inotifywait says when it watches: then comes the first look, and nothing is missed.
while read -r event file; do
    case "$event $file" in
    "Watches established.") update ;;
    *UNMOUNT* | *IGNORED*) break ;;
    *" vcon"*) update ;;
    esac
done <"$events"
update # the mount has gone, and with it the ports
