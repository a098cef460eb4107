"""vconfs connect: join standard input and output to a port."""

from __future__ import annotations

import os

import click

from vconfs.cli.arguments import PortName
from vconfs.cli.joining import join, opened, wait_for_host
from vconfs.cli.ports import find_port


@click.command("connect", short_help="Join standard input and output to a port.")
@click.argument("port", type=PortName())
def command(port: str) -> None:
    """Wait for the host of PORT, then send it standard input and print what it sends.

    PORT is a file, MOUNTPOINT/NAME, or the name of a port in any mount. The command ends when the
    host hangs up. The end of standard input does not end it: the answer may be still to come.

    \b
    Examples:
      vconfs connect org.example.chat
      echo '{"execute": "guest-ping"}' | vconfs connect /mnt/vcon/org.qemu.guest_agent.0
    """
    path = find_port(port)
    with opened(path, os.O_RDWR) as descriptor:
        wait_for_host(path, descriptor)
        join(descriptor)
