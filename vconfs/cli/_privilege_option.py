"""Which privileges the daemons keep; how they drop the others is in vconfs.system.privileges."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

import click

from vconfs.fuse import inherited_device
from vconfs.host.port import HostPortSpec
from vconfs.streams.url import parse_stream_address
from vconfs.system.privileges import Capability, drop_privileges

#: The option of the daemons that turns `drop_unneeded` off.
keep_privileges_option = click.option(
    "--keep-privileges", is_flag=True, help="Keep all privileges, for programs as well."
)


def drop_unneeded(
    ports: Iterable[HostPortSpec],
    needed: Collection[int] = (),
    *,
    may_gain: bool = False,
) -> None:
    """Drop the privileges that a daemon with these ports does not need.

    `needed` are capabilities that it needs for something else. With `may_gain`, the programs that
    it starts can gain privileges even if none is a port's.
    """
    chardevs = [port.chardev for port in ports]
    drop_privileges(
        {*needed, *(capability for chardev in chardevs for capability in chardev.capabilities)},
        may_gain=may_gain or any(chardev.starts_programs for chardev in chardevs),
    )


def needs_of_mount(mountpoint: Path) -> tuple[set[int], bool]:
    """Return the capabilities that mounting and unmounting need, and if a helper gains them."""
    mounts = inherited_device(mountpoint) is None
    return {Capability.SYS_ADMIN} if mounts else set(), mounts and os.geteuid() != 0


def starts_program(url: str) -> bool:
    """True if a device with this url is reached by a program, which may need to gain privileges."""
    scheme, _, rest = url.partition(":")
    return scheme == "stream" and parse_stream_address(rest).starts_program
