"""The ports of a host end on the command line."""

from __future__ import annotations

from typing import Any

import click

from vconfs.host.port import HostPortSpec
from vconfs.host.spec import parse_port


class PortSpec(click.ParamType[HostPortSpec]):
    """NAME=CHARDEV[,OPTION…] on the command line."""

    name = "NAME=CHARDEV[,OPTION…]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> HostPortSpec:
        """Read it; what is wrong with it is a usage error."""
        if isinstance(value, HostPortSpec):
            return value
        try:
            return parse_port(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
