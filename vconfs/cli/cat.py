"""vconfs cat: print what comes from a port, or send it standard input."""

from __future__ import annotations

import os

import click

from vconfs.cli._arguments import PortName
from vconfs.cli._find_port import find_port
from vconfs.cli._joining import opened, port_to_stdout, stdin_to_port, wait_for_host


@click.command("cat", short_help="Print what comes from a port, or send to it.")
@click.option("-w", "--write", is_flag=True, help="Copy standard input to the port instead.")
@click.argument("port", type=PortName())
def command(write: bool, port: str) -> None:
    """Wait for the host of PORT, and print what it sends until it hangs up.

    PORT is a file, MOUNTPOINT/NAME, or the name of a port in any mount. With --write, copy
    standard input to the port, and wait while the host wants no more data.

    \b
    Examples:
      vconfs cat org.example.log >log
      vconfs cat /mnt/vcon/vcon3
      tar c . | vconfs cat --write /mnt/vcon/org.example.backup
    """
    path = find_port(port)
    with opened(path, os.O_WRONLY if write else os.O_RDONLY) as descriptor:
        if write:
            stdin_to_port(descriptor)
        else:
            wait_for_host(path, descriptor)
            port_to_stdout(descriptor)
