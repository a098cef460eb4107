"""vconfs demo: a tour of what ports do, in a temporary mount, command by command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from attrs import frozen

from vconfs.errors import VconfsError
from vconfs.syntax.printable import printable

_LIMIT = 20

#: The mount of the tour; $D is the temporary folder, $M the mountpoint in it, $N, $O and $G others.
_MOUNT = (
    "vconfs mount --port org.vconfs.echo=echo --port org.example.chat=unix:$D/chat.sock,cache "
    "--port org.example.small=unix:$D/small.sock,cache,host-limit=16 "
    "--port org.example.hostname=exec:hostname --port =pty:$D/viewer,console "
    "-o wait,throttle=500ms $M"
)


@frozen
class _Step:
    """One step of the tour: what it shows, and its shell command."""

    shows: str
    command: str


_STEPS = (
    _Step("The ports are files.", "ls $M"),
    _Step(
        "Each has its name in an attribute, and a link with that name.",
        "getfattr --absolute-names --only-values -n name $M/vcon1; echo; ls $M/by-name",
    ),
    _Step(
        "What you write to the echo port comes back.",
        "exec 3<>$M/vcon0; echo hello >&3; read -r line <&3; echo $line",
    ),
    _Step(
        "The chat port is joined to a unix socket. From the host to the guest:",
        "echo 'from the host' | socat -u - UNIX-CONNECT:$D/chat.sock; cat $M/vcon1",
    ),
    _Step(
        "And from the guest to the host, by the port's name:",
        "echo 'from the guest' > $M/by-name/org.example.chat; "
        "socat -u UNIX-CONNECT:$D/chat.sock,readbytes=15 -",
    ),
    _Step(
        "A port can be a program, which runs each time the port is opened.",
        "cat $M/by-name/org.example.hostname",
    ),
    _Step(
        "No client is at the socket of vcon2, and the host keeps 16 bytes for it. The write that "
        "fills it throttles the port; the next one waits half a second for the host (by default 10 "
        "seconds) and fails, and nothing is lost.",
        "echo 'sixteen bytes..' > $M/vcon2; echo more > $M/vcon2",
    ),
    _Step(
        "The host reads, and the port goes on.",
        "socat -u UNIX-CONNECT:$D/small.sock,readbytes=16 -",
    ),
    _Step(
        "A blocked reader can be interrupted, and no data is lost.",
        'timeout -s INT 0.3 cat $M/vcon0; echo "cat ended with $?"',
    ),
    _Step(
        "A console has a pty in the mount, and here another one on the side of the host.",
        "exec 3<>$M/hvc0 4<>$D/viewer; echo 'login:' >&3; read -r seen <&4; echo $seen",
    ),
    _Step(
        "Every change of a port is an event that a script can wait for.",
        "(sleep 0.3; exec socat -u UNIX-CONNECT:$D/chat.sock -) & "
        "vconfs watch --until connect=org.example.chat $M && echo there; kill $!",
    ),
    _Step("What all ports are doing, at a glance:", "vconfs ls $M"),
    _Step(
        "The host end can be another process, and get ports at run time.",
        "vconfs host --listen stream:unix:$D/device --control $D/control & "
        "until [ -e $D/device ]; do sleep 0.1; done; "
        "vconfs mount --device stream:unix:$D/device $N; "
        "vconfs ctl $D/control add system=exec:uname; vconfs cat $N/system; "
        "vconfs umount $N; kill $!; wait",
    ),
    _Step(
        "A host end can have many guests, and its side of their ports can be files, too.",
        "vconfs host --listen stream:unix:$D/any,guest=* --mount $G --port chat=mount & "
        "until [ -e $D/any ]; do sleep 0.1; done; "
        "vconfs mount -o wait --device stream:unix:$D/any --name web1 $N; "
        "vconfs mount -o wait --device stream:unix:$D/any --name db1 $O; "
        "for name in web1 db1; do echo hello, $name > $G/$name/by-name/chat; done; "
        "for port in $N/vcon0 $O/vcon0; do read -r line < $port; echo $line; done; "
        "vconfs ls $G; vconfs umount $N; vconfs umount $O; kill $!; wait",
    ),
    _Step(
        "The mount ends in order, even while a program waits to read.",
        "cat $M/vcon0 & vconfs umount $M; wait",
    ),
)


@click.command("demo", short_help="Show in under 20 seconds what ports do.")
@click.option("--shell", is_flag=True, help="Open a shell in the mount instead of the tour.")
def command(shell: bool) -> None:
    """Show in under 20 seconds what ports do, in a temporary mount.

    Each command is printed before it runs, and its output follows.

    \b
    Examples:
      vconfs demo
      vconfs demo --shell
    """
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, _leave)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vconfs-demo-")))
        places = {"M": "mnt", "N": "other", "O": "another", "G": "guests"}
        folders = {variable: scratch / name for variable, name in places.items()}
        for folder in folders.values():
            folder.mkdir()
            stack.callback(_unmount, folder)
        environment = _environment({"D": scratch, **folders})
        mountpoint = folders["M"]
        _show(_Step("A mount with five ports, both ends in one process.", _MOUNT), environment)
        if shell:
            click.echo(f"The ports are in {printable(str(mountpoint))}; leave the shell to end.")
            subprocess.run([os.environ.get("SHELL", "bash")], cwd=mountpoint, check=False)
            return
        for step in _STEPS:
            _show(step, environment)
    click.echo("\nThat was all; nothing is left mounted.")


def _environment(places: Mapping[str, Path]) -> dict[str, str]:
    here = str(Path(sys.executable).parent)
    path = here + os.pathsep + os.environ.get("PATH", "/usr/bin:/bin")
    return {**os.environ, "PATH": path, **{name: str(place) for name, place in places.items()}}


def _show(step: _Step, environment: dict[str, str]) -> None:
    """Print a step and run it. A command may fail as part of the tour, but not hang."""
    click.secho(f"\n# {step.shows}", dim=True)
    click.secho(f"$ {step.command}", bold=True)
    with subprocess.Popen(
        ["bash", "-c", step.command],
        env=environment,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            process.wait(_LIMIT)
        except BaseException as error:  # signals, too
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise VconfsError(f"this step did not end within {_LIMIT} s") from None
            raise


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """End by an exception, so that everything is unmounted."""
    sys.exit(128 + number)


def _unmount(mountpoint: Path) -> None:
    """Unmount a folder that the tour has left mounted."""
    if os.path.ismount(mountpoint):
        subprocess.run([sys.executable, "-m", "vconfs", "umount", str(mountpoint)], check=False)
