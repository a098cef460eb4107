#!/bin/sh
# Read by scripts that fetch packages into a folder, and install nothing: NAME, DIR and SUITE are
# set. DIR appears when it is complete, however many do this at once, and wherever one is stopped.

mkdir -p "$(dirname "$DIR")"
work=$(mktemp -d "$DIR.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
log=$work/log
mkdir -p "$work/new" "$work/deb" "$work/lists/partial" "$work/cache/archives/partial"

# Ends with what went wrong, and what the programs said of it.
fail() {
    [ ! -s "$log" ] || tail -n 5 "$log" >&2
    echo "$NAME: $*" >&2
    exit 1
}

# An apt program with this machine's settings, which writes nothing where apt keeps its own.
apt() {
    program=$1
    shift
    "$program" -qq -o APT::Sandbox::User=root -o Dir::Cache="$work/cache" \
        -o Dir::State::Lists="$lists" "$@" 2>>"$log"
}

# Runs a command with the lists of packages that this machine has; if it fails, with new ones.
# Sources that cannot be reached do not matter if others have the package.
with_lists() {
    lists=$(apt-config shell lists Dir::State::Lists/d | sed "s/^lists='\(.*\)'$/\1/")
    "$@" && return
    lists=$work/lists
    apt apt-get update >>"$log" || true
    "$@"
}

download() {
    (cd "$work/deb" && apt apt-get download "$@" >>"$log")
}

# Unpacks files of a package, by tar's options and patterns, into a folder.
unpack() {
    package=$1 folder=$2
    shift 2
    dpkg-deb --fsys-tarfile "$work/deb/$package"_*.deb | tar -x -C "$folder" --wildcards "$@" \
        2>>"$log" || fail "the package $package of $SUITE lacks some of: $*"
}

# Puts what is in $work/new where it is wanted, if FILE is not there already.
place() {
    [ -e "$DIR/$1" ] || rm -rf "$DIR"
    mv -T "$work/new" "$DIR" 2>>"$log" || [ -e "$DIR/$1" ] || fail "cannot put it into $DIR"
}
