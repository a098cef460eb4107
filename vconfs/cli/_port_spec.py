"""The ports of a host end on the command line, and its control socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from vconfs.cli._arguments import proposals
from vconfs.host.chardev import chardev_kinds, parse_chardev
from vconfs.host.control_socket import control_path
from vconfs.host.port import HostPortSpec
from vconfs.host.spec import parse_port


def _control_path(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    try:
        return None if path is None else control_path(path)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


control_option = click.option(
    "--control",
    type=click.Path(),
    callback=_control_path,
    metavar="PATH",
    help="Path of a socket for `vconfs ctl`.",
)


class PortSpec(click.ParamType[HostPortSpec]):
    """NAME=CHARDEV[,OPTION…] on the command line."""

    name = "NAME=CHARDEV[,OPTION…]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> HostPortSpec:
        """Parse it; a wrong port is a usage error."""
        if isinstance(value, HostPortSpec):
            return value
        try:
            return parse_port(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Propose chardevs after the name."""
        name, equals, _ = incomplete.partition("=")
        return proposals((f"{name}={kind}" for kind in _beginnings()), incomplete) if equals else []


class PortText(PortSpec):
    """The same, checked and kept as a text: %g may stand for the name of a guest in it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check it; a wrong port is a usage error."""
        super().convert(value, param, ctx)
        return value


def _beginnings() -> Iterator[str]:
    for kind in chardev_kinds():
        try:
            parse_chardev(kind)
            yield kind
        except ValueError:
            yield f"{kind}:"  # it needs an argument
