"""vconfs connect: join standard input and output to a port."""

from __future__ import annotations

import os
from collections.abc import Callable

import click
import trio

from vconfs.cli._arguments import PortName
from vconfs.cli._find_port import find_port
from vconfs.cli._joining import opened, port_to_stdout, stdin_to_port, wait_for_host


@click.command("connect", short_help="Join standard input and output to a port.")
@click.argument("port", type=PortName())
def command(port: str) -> None:
    """Wait for the host of PORT, then send it standard input and print what it sends.

    PORT is a file, MOUNTPOINT/NAME, or the name of a port in any mount. The command ends when the
    host hangs up, and not at the end of standard input, because an answer may still come.

    \b
    Examples:
      vconfs connect org.example.chat
      echo '{"execute": "guest-ping"}' | vconfs connect /mnt/vcon/org.qemu.guest_agent.0
    """
    path = find_port(port)
    with opened(path, os.O_RDWR) as descriptor:
        wait_for_host(path, descriptor)
        _join(descriptor)


def _join(port: int) -> None:
    """Copy both ways until the port hangs up; raise OSError or KeyboardInterrupt.

    After the end of our input, what the port sends is still printed: the only way to tell the host
    of that end would be to close the port.
    """
    try:
        trio.run(_copy_both_ways, port)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def _copy_both_ways(port: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_in_thread, stdin_to_port, port)
        await _in_thread(port_to_stdout, port)
        nursery.cancel_scope.cancel()


async def _in_thread(copy: Callable[[int], None], port: int) -> None:
    await trio.to_thread.run_sync(copy, port, abandon_on_cancel=True)
