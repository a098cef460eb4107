"""vconfs umount: hang the ports up, then unmount, even when somebody is blocked on one."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import click

from vconfs import fuse
from vconfs.cli.arguments import Mount
from vconfs.cli.mount_table import answering
from vconfs.errors import VconfsError
from vconfs.files.names import PID_ATTRIBUTE
from vconfs.fuse.mount import listed

#: Seconds that the daemon may take to end when it has unmounted, or does not wait for data.
_PATIENCE = 5.0
#: Seconds from one look whether the daemon still answers to the next.
_LOOK = 2.0


@click.command("umount", short_help="Hang up all ports of a mount, then unmount it.")
@click.option("-f", "--force", is_flag=True, help="Do not wait for data that is on its way.")
@click.argument("mountpoint", type=Mount())
def command(force: bool, mountpoint: Path) -> None:
    """Hang up every port of the mount at MOUNTPOINT, then unmount it.

    Writing fails from now on, but what was written before reaches the host, and what has come is
    read, for as long as those who are to have it take any (see -o drain of `vconfs mount`). With
    -f, or when it is called a second time, what is on its way is dropped. Programs that are blocked
    on a port get end of file, and a device that --bind took from its driver is given back. A mount
    whose daemon was killed, or does not answer, goes as well.

    \b
    Examples:
      vconfs umount /mnt/vcon
      vconfs umount -f /mnt/vcon
    """
    target = Path(os.path.abspath(mountpoint))
    if not fuse.is_mounted(target):
        target = Path(os.path.realpath(target))  # mount(2) followed the links as well
    if not fuse.is_mounted(target):
        raise VconfsError(f"{mountpoint} is not a vconfs mount")
    answers = bool(answering([target]))
    try:
        if answers and _ask_daemon(target, force=force):
            return
    except (OSError, ValueError):
        pass  # somebody else's daemon: unmount it ourselves
    try:
        fuse.unmount(target, lazy=True, abort=not answers)
    except OSError as error:
        raise VconfsError(f"cannot unmount {mountpoint}: {error.strerror}") from None


def _ask_daemon(target: Path, *, force: bool) -> bool:
    """Have the daemon unmount, and wait until it has put everything back; False: it did not."""
    daemon = os.pidfd_open(int(os.getxattr(target, PID_ATTRIBUTE)))
    try:
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        if force:  # two signals end it at once; two of the same kind may come as one
            signal.pidfd_send_signal(daemon, signal.SIGINT)
        if not _wait_unmounted(target, force=force):
            return False
        ended = select.poll()
        ended.register(daemon, select.POLLIN)
        ended.poll(_PATIENCE * 1000)
        return True
    finally:
        os.close(daemon)


def _wait_unmounted(target: Path, *, force: bool) -> bool:
    """Wait until the mount is gone; False: its daemon does not answer any more, or takes too long.

    The kernel tells of changes by POLLPRI. A daemon that waits for data may take its time.
    """
    deadline = time.monotonic() + _PATIENCE
    with open("/proc/self/mountinfo", "rb") as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI)
        while listed(table.read(), target):
            late = time.monotonic() > deadline
            if late and (force or not answering([target])) and listed(_mounts(), target):
                return False
            changes.poll(_LOOK * 1000)
            table.seek(0)
    return True


def _mounts() -> bytes:
    return Path("/proc/self/mountinfo").read_bytes()
