"""The ports of a host end on the command line, and its control socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from vconfs.cli._arguments import File, parsed_by, proposals
from vconfs.cli._values import as_typed, last_word, options, paths
from vconfs.host.chardev import chardev_kinds, options_of, parse_chardev, split_kind
from vconfs.host.control_socket import control_path
from vconfs.host.port import HostPortSpec
from vconfs.host.spec import PORT_FORMS, parse_port

control_option = click.option(
    "--control",
    type=File(),
    callback=parsed_by(control_path),
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
        """Propose chardevs after the name, then paths, and options after a comma."""
        name, equals, chardev = incomplete.partition("=")
        return proposals(_words(f"{name}=", chardev), incomplete) if equals else []


def _words(before: str, typed: str) -> Iterator[str]:
    """Yield words for the chardev that is `typed` behind `before`."""
    kind, argument = split_kind(typed)
    if kind == typed:
        yield from (before + beginning for beginning in _beginnings())
    elif begin := last_word(typed):
        with suppress(ValueError):  # there is no such kind
            names = as_typed((*(options_of(kind) or ()), *PORT_FORMS))
            yield from options(before + typed[:begin], names, typed[begin:])
    elif kind in _ON_PATHS:
        yield from paths(f"{before}{kind}:", argument)


#: The kinds whose argument is a path.
_ON_PATHS: Final = ("unix", "seqpacket", "connect", "pipe", "file", "pty")


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
