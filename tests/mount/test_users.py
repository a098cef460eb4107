"""Several users: what one without privileges can do, and what modes and owners mean to others.

Each test is a shell script in a mount namespace where every user may use FUSE, and users may
allow others to use their mounts. `as USER COMMAND` runs as another real user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import needs

PREPARE = f"""
set -eu
mount --bind "$D/fuse" /dev/fuse
mount --bind "$D/fuse.conf" /etc/fuse.conf
PATH={Path(sys.executable).parent}:$PATH M=$D/mnt
export PATH M
as() {{
    user=$1; shift
    setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
}}
# The output of a user's attempt, or the reason why it fails.
try() {{ as "$@" 2>&1 || true; }}
can() {{ as "$1" sh -c "$2" >/dev/null 2>&1 && echo "$1 can" || echo "$1 cannot"; }}
trap '[ -z "$host" ] || kill $host || true; umount -l "$M" 2>/dev/null || true' EXIT
host=
cd /
"""

#: Defines `mounted USER OPTIONS` as a mount by a user, with the files in $F; for each side of the
#: ports. At the host's side the ports are in the folder of a guest that is not connected.
SIDES = {
    "guest": """
export F=$M
mounted() { user=$1; shift; as "$user" vconfs mount "$@" "$M"; }
""",
    "host": """
export F=$M/web1
mounted() {
    user=$1; shift
    for word; do
        shift
        case $word in *=echo) word=${word%=echo}=mount ;; esac
        set -- "$@" "$word"
    done
    mkdir "$D/socks"; chown "$user" "$D/socks"
    setpriv --reuid "$user" --regid "$user" --clear-groups \\
        vconfs host --listen "stream:unix:$D/socks/web1" --mount "$M" "$@" 2>/dev/null &
    host=$!
    until as "$user" test -e "$F/vcon0"; do kill -0 $host; sleep 0.02; done
}
""",
}
both_sides = pytest.mark.parametrize("side", SIDES)

#: A round trip over a port that echoes.
USE = """exec 3<>"$M"/vcon0; echo hello >&3; head -n 1 <&3"""

Run = Callable[[str], list[str]]


@pytest.fixture
def run() -> Iterator[Run]:
    """Run a script, with $M a folder of the user `games`; give the lines that it prints."""
    needs.other_users()
    folder = Path(tempfile.mkdtemp(prefix="vconfs-users-"))
    folder.chmod(0o755)
    (folder / "mnt").mkdir()
    shutil.chown(folder / "mnt", "games", "games")
    (folder / "fuse.conf").write_text("user_allow_other\n")
    os.mknod(folder / "fuse", 0o20666, os.makedev(10, 229))
    (folder / "fuse").chmod(0o666)

    def run_it(script: str) -> list[str]:
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", PREPARE + script],
            env={**os.environ, "D": str(folder)},
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    try:
        yield run_it
    finally:
        shutil.rmtree(folder)


def test_a_user_mounts_and_uses_ports(run: Run) -> None:
    output = run(
        f"""
        as games vconfs mount --port org.example.echo=echo --port =pty,console "$M"
        findmnt -n -o FSTYPE,OPTIONS "$M" | tr , '\\n' | grep -x 'user_id=.*\\|default_permissions'
        stat -c '%U %a' "$M" 2>/dev/null || echo "not even root looks in"
        as games stat -c '%U %a' "$M" "$M/vcon0"
        as games sh -c '{USE}'
        as games vconfs ls --json "$M" | wc -l
        as games vconfs watch --until add=org.example.echo "$M"
        as games sh -c 'stty -F "$(readlink "$M/hvc0")" sane && stat -L -c "%U %a" "$M/hvc0"'
        as games vconfs umount "$M"; ls "$M"
        """
    )
    assert output == [
        f"user_id={shutil._get_uid('games')}",  # type: ignore[attr-defined]
        "default_permissions",
        "not even root looks in",
        "games 755",
        "games 600",
        "hello",
        "2",
        "games 600",
    ]


def test_a_users_daemon_unmounts_when_it_ends(run: Run) -> None:
    """It does so by fusermount3, a set-uid program, so its programs can still gain privileges."""
    output = run(
        """
        as games vconfs mount --port a=echo "$M"
        daemon=$(as games getfattr --absolute-names --only-values -n user.pid "$M")
        grep 'CapPrm\\|NoNewPrivs' /proc/$daemon/status
        kill $daemon; tail --pid=$daemon -f /dev/null
        findmnt "$M" || echo unmounted
        """
    )
    assert output == ["CapPrm:\t0000000000000000", "NoNewPrivs:\t0", "unmounted"]


@both_sides
def test_a_user_cannot_touch_anothers_mount(run: Run, side: str) -> None:
    output = run(
        SIDES[side]
        + """
        mounted games --port a=echo
        try daemon vconfs ls "$M"; try daemon vconfs umount "$M"; try daemon vconfs cat "$F/vcon0"
        can daemon 'ls "$M"'; can daemon 'exec 3<>"$F/vcon0"'; can daemon 'cat "$M/.events"'
        can games 'exec 3<>"$F/vcon0"'
        """
    )
    denied, unmount, cat = output[:3]
    assert denied.endswith("/mnt: Permission denied")
    assert unmount.startswith("vconfs: cannot unmount")
    assert cat.endswith("/vcon0: Permission denied")
    assert output[3:] == ["daemon cannot"] * 3 + ["games can"]


@both_sides
@pytest.mark.parametrize("options", ["mode=0666", "mode=0666,uid=daemon"])
def test_only_root_and_the_user_of_a_mount_may_tap_it(run: Run, options: str, side: str) -> None:
    """Not even the owner of the files may, or a user who may read and write each of them."""
    mounter = "root" if "uid" in options else "games"
    output = run(
        SIDES[side]
        + f"""
        mounted {mounter} --port a=echo -o allow_other,{options}
        can daemon 'exec 3<>"$F/vcon0"'
        can daemon 'cat "$F/.tap"'; can daemon 'exec 3<>"$F/.tap"'; can daemon 'exec 3>"$F/.tap"'
        try daemon vconfs tap "$F"; try daemon vconfs tap "$F/a"
        can {mounter} 'timeout 10 head -n 1 "$F/.tap" | grep present'
        can root 'vconfs tap --filter present "$F" >"$D/tap" &
            until grep present "$D/tap"; do sleep 0.05; done; kill $!'
        """
    )
    refused = ": only root and the user who runs the mount may tap its ports"
    assert output[:4] == ["daemon can"] + ["daemon cannot"] * 3
    assert all(line.startswith("vconfs: ") and line.endswith(refused) for line in output[4:6])
    assert output[6:] == [f"{mounter} can", "root can"]


def test_a_user_cannot_mount_on_anothers_folder(run: Run) -> None:
    (line,) = run('try daemon vconfs mount --port a=echo "$M"')
    assert "user has no write access to mountpoint" in line


@pytest.mark.parametrize(
    ("options", "users"),
    [
        ("mode=0600", {"games": "rw", "daemon": "", "mail": ""}),
        ("mode=0666", {"games": "rw", "daemon": "rw", "mail": "rw"}),
        ("mode=0644", {"games": "rw", "daemon": "r", "mail": "r"}),
        ("mode=0622", {"games": "rw", "daemon": "w", "mail": "w"}),
        ("mode=0440", {"games": "r", "daemon": "", "mail": ""}),
    ],
)
@both_sides
def test_the_mode_holds_when_a_user_lets_others_in(
    run: Run, options: str, users: dict[str, str], side: str
) -> None:
    output = run(
        SIDES[side]
        + f"""
        mounted games --port a=echo -o allow_other,{options}
        for user in {" ".join(users)}; do
            can $user 'exec 3<"$F"/vcon0'; can $user 'exec 3>"$F"/vcon0'
        done
        """
    )
    assert output == [
        f"{user} {'can' if access in may else 'cannot'}"
        for user, may in users.items()
        for access in "rw"
    ]


RULES = """
[[port]]
name = "for.mail"
uid = "mail"
mode = "0600"

[[port]]
name = "for.group.*"
gid = "daemon"
mode = "0640"

[[port]]
name = "for.all"
mode = "0666"
"""


@both_sides
@pytest.mark.parametrize("mounter", ["root", "games"])
def test_rules_say_who_may_use_which_port(run: Run, mounter: str, side: str) -> None:
    output = run(
        SIDES[side]
        + f"""
        cat >"$D/rules.toml" <<'END'
{RULES}
END
        mounted {mounter} --rules "$D/rules.toml" -o allow_other \\
            --port for.mail=echo --port for.group.a=echo --port for.all=echo --port none=echo
        for user in mail daemon sys; do
            for port in for.mail for.group.a for.all none; do
                can $user 'exec 3<"$F"/by-name/'$port; can $user 'exec 3>"$F"/by-name/'$port
            done
        done
        can mail 'chmod 666 "$F"/vcon0'; can sys 'chmod 666 "$F"/vcon3'
        can sys 'touch "$F"/new'; can sys 'rm -f "$F"/vcon2'
        """
    )
    may = {
        "mail": ["r", "w", "", "", "r", "w", "", ""],
        "daemon": ["", "", "r", "", "r", "w", "", ""],
        "sys": ["", "", "", "", "r", "w", "", ""],
    }
    lines = [f"{user} {'can' if yes else 'cannot'}" for user, all in may.items() for yes in all]
    assert output[: len(lines)] == lines
    assert output[len(lines) :] == ["mail cannot", *["sys cannot"] * 3]


def test_a_console_has_the_owner_and_mode_of_its_port(run: Run) -> None:
    output = run(
        """
        as root vconfs mount -o allow_other,uid=mail,gid=daemon,mode=0620 --port =null,console "$M"
        stat -L -c '%U %G %a' "$M/hvc0"
        for user in mail daemon sys; do
            can $user 'exec 3<"$M/hvc0"'; can $user 'exec 3>"$M/hvc0"'
        done
        """
    )
    assert output == [
        "mail daemon 620",
        *("mail can", "mail can", "daemon cannot", "daemon can"),
        *("sys cannot", "sys cannot"),
    ]


def test_a_user_mounts_what_fstab_lets_users_mount(run: Run) -> None:
    output = run(
        """
        mount --bind "$(dirname "$(command -v vconfs)")" /usr/local/bin
        echo 'port = ["a=echo"]' >"$D/vcon.toml"
        echo "none $M fuse.vconfs user,noauto,config=$D/vcon.toml,mode=0640 0 0" >"$D/fstab"
        mount --bind "$D/fstab" /etc/fstab
        as games mount "$M"
        as games stat -c '%U %a %n' "$M/vcon0"
        can daemon 'umount "$M"'
        as games umount "$M"; ls "$M"
        """
    )
    assert len(output) == 2
    assert output[0].startswith("games 640 ")
    assert output[1] == "daemon cannot"
