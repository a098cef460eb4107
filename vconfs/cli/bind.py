"""vconfs bind: take a PCI function away from the kernel's driver, for `--device pci:ADDRESS`."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from vconfs.cli._arguments import proposals
from vconfs.device import binding
from vconfs.syntax.printable import printable


class PciAddress(click.ParamType[str]):
    """A PCI address on the command line."""

    name = "ADDRESS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse it; a wrong address is a usage error."""
        try:
            return binding.parse_address(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Propose the virtio consoles of this machine."""
        return proposals(binding.candidates(), incomplete)


@click.command("bind", short_help="Bind a virtio console on PCI to VFIO.")
@click.argument("address", type=PciAddress(), required=False)
def command(address: str | None) -> None:
    """Bind the virtio console at the PCI address to VFIO, so that vconfs can drive it.

    Without ADDRESS, list the virtio consoles of this machine and their drivers. The kernel's own
    ports of that console (/dev/vport*) are gone until `vconfs unbind`.

    \b
    Examples:
      vconfs bind
      vconfs bind 0000:00:05.0
    """
    if address is None:
        for found in binding.candidates():
            driver = binding.PciFunction(found).driver
            click.echo(printable(f"{found}  {driver or '-'}"))
    else:
        binding.PciFunction(address).bind()
