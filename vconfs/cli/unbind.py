"""vconfs unbind: give a PCI function back to the kernel's driver."""

from __future__ import annotations

import click

from vconfs.cli.bind import PciAddress
from vconfs.device import binding
from vconfs.device.vfio_group import remove_memory


@click.command("unbind", short_help="Return a virtio console on PCI to the kernel.")
@click.argument("address", type=PciAddress())
def command(address: str) -> None:
    """Return the virtio console at the PCI address to the kernel's own driver.

    \b
    Example:
      vconfs unbind 0000:00:05.0
    """
    function = binding.PciFunction(address)
    function.unbind()
    remove_memory(function)
