"""vconfs unbind: give a PCI function back to the kernel's driver."""

from __future__ import annotations

import click

from vconfs.cli.bind import PciAddress
from vconfs.device import binding


@click.command("unbind", short_help="Give a virtio console on PCI back to the kernel.")
@click.argument("address", type=PciAddress())
def command(address: str) -> None:
    """Give the virtio console at the PCI address back to the kernel's own driver.

    \b
    Example:
      vconfs unbind 0000:00:05.0
    """
    binding.PciFunction(address).unbind()
