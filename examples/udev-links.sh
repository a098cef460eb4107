#!/bin/sh
# Keeps DIR/NAME -> MOUNTPOINT/vconNN for every named port of a vconfs mount, as udev does for
# /dev/virtio-ports: as soon as a port is added, renamed or removed. It ends when the mount does.
#
#   udev-links.sh MOUNTPOINT DIR
#
# It needs no command of vconfs: inotifywait reports changes, getfattr names. In a name, "/" is
# written as "%2F" and "%" as "%25". If two ports have the same name, the one with the lowest number
# has the link. The unit udev-links.service runs it with its mount.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: udev-links.sh MOUNTPOINT DIR" >&2
    exit 2
fi
for tool in inotifywait getfattr; do
    command -v "$tool" >/dev/null || {
        echo "udev-links.sh: $tool is missing: install inotify-tools and attr" >&2
        exit 1
    }
done
mount=$1 dir=$2
if ! getfattr --absolute-names --only-values -n user.pid "$mount" >/dev/null 2>&1; then
    echo "udev-links.sh: $mount is not a vconfs mount" >&2
    exit 1
fi
mkdir -p "$dir"

# name_of FILE: print the name of a port's link; nothing if it has no name, or none for a file
name_of() {
    getfattr --absolute-names --only-values -n user.name "$1" 2>/dev/null |
        sed -e 's/%/%25/g' -e 's,/,%2F,g' -e 's/^\.$/%2E/' -e 's/^\.\.$/%2E%2E/'
}

# ports: print the numbers of the existing ports, in order
ports() {
    for file in "$mount"/vcon*; do
        [ -e "$file" ] && echo "${file##*/vcon}"
    done | sort -n
}

# update: correct the links that differ
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
            echo "udev-links.sh: $dir/$name is not a link: left alone" >&2
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
trap 'exit 1' HUP INT
ended=
trap 'ended=1' TERM # a service manager's, which may come before the end of the mount is seen

# inotifywait reports when it watches. The first update comes after that, so nothing is missed.
while [ -z "$ended" ] && read -r event file; do
    case "$event $file" in
    "Watches established.") update ;;
    *UNMOUNT* | *IGNORED*) break ;;
    *" vcon"*) update ;;
    esac
done <"$events"
update # if the mount is gone, so are its ports
