#!/bin/sh
# Sourced by scripts that fetch packages into a folder, and install nothing. They set NAME, DIR and
# SUITE. DIR appears only when it is complete, even if several scripts run at once or one is stopped.

mkdir -p "$(dirname "$DIR")"
work=$(mktemp -d "$DIR.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
log=$work/log
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$work/new" "$work/deb" "$work/lists/partial" "$work/cache/archives/partial"

# Ends with an error message, after the last messages of the programs that were run.
fail() {
    [ ! -s "$log" ] || tail -n 5 "$log" >&2
    echo "$NAME: $*" >&2
    exit 1
}

# Runs an apt program with this machine's settings, but writes to none of apt's own folders.
apt() {
    program=$1
    shift
    "$program" -qq -o APT::Sandbox::User=root -o Dir::Cache="$work/cache" \
        -o Dir::State::Lists="$lists" "$@" 2>>"$log"
}

# Runs a command with this machine's package lists; if it fails, with freshly fetched ones.
# Sources that cannot be reached do not matter if another has the package.
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

# Finds the mirror of other releases than this machine's, or ends.
need_mirror() {
    [ -e "$keys" ] || fail "Debian's keys are missing: apt-get install debian-archive-keyring"
    with_lists find_mirror ||
        fail "apt has no source of Debian packages here, so no mirror for testing is known"
}

# Finds the mirror from which apt gets Debian.
find_mirror() {
    # shellcheck disable=SC2016 # apt's variable
    mirror=$(apt apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
        'Origin: Debian' 'Label: Debian' | head -n 1)
    [ -n "$mirror" ]
}

# Runs an apt program for one release, without regard to installed packages and this machine's
# preferences.
apt_of() {
    release=$1 program=$2
    shift 2
    lists=$work/$release
    mkdir -p "$lists/partial"
    echo "deb [signed-by=$keys] $mirror $release main" >"$work/$release.list"
    apt "$program" -o Dir::Etc::SourceList="$work/$release.list" \
        -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        -o APT::Default-Release= -o Dir::State::Status=/dev/null "$@"
}

apt_get_of() {
    release=$1
    shift
    apt_of "$release" apt-get "$@" >>"$log"
}

# Unpacks files of a package into a folder; they are chosen by tar's options and patterns.
unpack() {
    package=$1 folder=$2
    shift 2
    dpkg-deb --fsys-tarfile "$work/deb/$package"_*.deb | tar -x -C "$folder" --wildcards "$@" \
        2>>"$log" || fail "the package $package of $SUITE lacks some of: $*"
}

# Moves $work/new to DIR, unless DIR already has FILE.
place() {
    [ -e "$DIR/$1" ] || rm -rf "$DIR"
    mv -T "$work/new" "$DIR" 2>>"$log" || [ -e "$DIR/$1" ] || fail "cannot put it into $DIR"
}
