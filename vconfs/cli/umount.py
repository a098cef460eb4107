"""vconfs umount: hang the ports up, then unmount, even when somebody is blocked on one."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import click

from vconfs import fuse
from vconfs.cli import Failure
from vconfs.cli.arguments import Mount
from vconfs.cli.mount_table import answering
from vconfs.fuse.mount import listed
from vconfs.names import PID_ATTRIBUTE

#: How long the daemon may take to end before it is unmounted over its head.
_PATIENCE = 5.0


@click.command("umount", short_help="Hang up all ports of a mount, then unmount it.")
@click.argument("mountpoint", type=Mount())
def command(mountpoint: Path) -> None:
    """Hang up every port of the mount at MOUNTPOINT, then unmount it.

    Programs that are blocked on a port get end of file, and a device that --bind took from its
    driver is given back. A mount whose daemon was killed, or does not answer, goes as well.

    \b
    Example:
      vconfs umount /mnt/vcon
    """
    target = Path(os.path.abspath(mountpoint))
    if not fuse.is_mounted(target):
        target = Path(os.path.realpath(target))  # mount(2) followed the links as well
    if not fuse.is_mounted(target):
        raise Failure(f"{mountpoint} is not a vconfs mount")
    answers = bool(answering([target]))
    try:
        if answers and _ask_daemon(target):
            return
    except (OSError, ValueError):
        pass  # somebody else's daemon: unmount it ourselves
    try:
        fuse.unmount(target, lazy=True, abort=not answers)
    except OSError as error:
        raise Failure(f"cannot unmount {mountpoint}: {error.strerror}") from None


def _ask_daemon(target: Path) -> bool:
    """Have the daemon unmount, and wait until it has put everything back; whether it unmounted."""
    daemon = os.pidfd_open(int(os.getxattr(target, PID_ATTRIBUTE)))
    try:
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        if not _wait_unmounted(target):
            return False
        ended = select.poll()
        ended.register(daemon, select.POLLIN)
        ended.poll(_PATIENCE * 1000)
        return True
    finally:
        os.close(daemon)


def _wait_unmounted(target: Path) -> bool:
    """Wait until the mount is gone; the kernel tells of changes by POLLPRI."""
    deadline = time.monotonic() + _PATIENCE
    with open("/proc/self/mountinfo", "rb") as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI)
        while listed(table.read(), target):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            changes.poll(left * 1000)
            table.seek(0)
    return True
