"""vconfs umount: hang up the ports, then unmount, even while programs are blocked on them."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import click

from vconfs import fuse
from vconfs.cli._arguments import Mount
from vconfs.cli._mount_table import answering
from vconfs.errors import VconfsError
from vconfs.files.names import PID_ATTRIBUTE
from vconfs.fuse import listed
from vconfs.system.descriptors import owned
from vconfs.system.mountinfo import MOUNTINFO

#: Seconds that the daemon may take to end after unmounting, or if it does not wait for data.
_PATIENCE = 5.0
#: Seconds between two checks that the daemon still answers.
_LOOK = 2.0


@click.command("umount", short_help="Hang up all ports of a mount, then unmount it.")
@click.option("-f", "--force", is_flag=True, help="Do not wait for data that is on its way.")
@click.option("-l", "--lazy", is_flag=True, help="Detach the mount; serve open files until closed.")
@click.argument("mountpoint", type=Mount())
def command(force: bool, lazy: bool, mountpoint: Path) -> None:
    """Hang up every port of the mount at MOUNTPOINT, then unmount it.

    New writes fail, but data on its way is still delivered, in both directions, as long as its
    receiver takes any of it (see -o drain of `vconfs mount`). With -f, or when the command is run a
    second time, that data is dropped. Programs that are blocked on a port get an end of file, and a
    device that --bind took from its driver is given back. A mount whose daemon was killed, or does
    not answer, is unmounted, too.

    With -l, the mount disappears from its folder at once, and its daemon ends when the last program
    has closed its port.

    \b
    Examples:
      vconfs umount /mnt/vcon
      vconfs umount -f /mnt/vcon
      vconfs umount -l /mnt/vcon
    """
    target = Path(os.path.abspath(mountpoint))
    if not fuse.is_mounted(target):
        target = Path(os.path.realpath(target))  # mount(2) followed the links, too
    if not fuse.is_mounted(target):
        raise VconfsError(f"{mountpoint} is not a vconfs mount")
    answers = bool(answering([target]))
    try:
        if answers and (not lazy or force) and _ask_daemon(target, force=force):
            return
    except (OSError, ValueError):
        pass  # the daemon of another user, or none: unmount it ourselves
    try:
        fuse.unmount(target, lazy=True, abort=not answers)
    except OSError as error:
        raise VconfsError(f"cannot unmount {mountpoint}: {error.strerror}") from None


def _ask_daemon(target: Path, *, force: bool) -> bool:
    """Let the daemon unmount, and wait until it has ended; return False if it does not unmount."""
    with owned(os.pidfd_open(int(os.getxattr(target, PID_ATTRIBUTE)))) as daemon:
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        if force:  # two signals end it at once; two of the same kind may come as one
            signal.pidfd_send_signal(daemon, signal.SIGINT)
        if not _wait_unmounted(target, force=force):
            return False
        ended = select.poll()
        ended.register(daemon, select.POLLIN)
        ended.poll(_PATIENCE * 1000)
        return True


def _wait_unmounted(target: Path, *, force: bool) -> bool:
    """Wait until the mount is gone; return False if its daemon stops answering.

    With `force`, also return False if the daemon takes too long; without, it may be waiting for
    data to be delivered. The kernel reports changes of the table by POLLPRI.
    """
    deadline = time.monotonic() + _PATIENCE
    with MOUNTINFO.open("rb") as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI)
        while listed(table.read(), target):
            late = time.monotonic() > deadline
            if late and (force or not answering([target])) and fuse.is_mounted(target):
                return False
            changes.poll(_LOOK * 1000)
            table.seek(0)
    return True
