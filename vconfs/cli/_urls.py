"""DEVICE and LISTEN urls on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
from attrs import frozen
from click.shell_completion import CompletionItem

from vconfs.cli._arguments import proposals
from vconfs.device import binding
from vconfs.guest.devices import EMBEDDED, KERNEL, KINDS, parse_device
from vconfs.host.listeners import LISTENERS, parse_listener
from vconfs.streams.url import ADDRESSES


@frozen
class Url(click.ParamType[str]):
    """A url that is checked when it is parsed, and used later."""

    check: Callable[[str], object]
    beginnings: Callable[[], Sequence[str]]
    name: str = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it; a wrong url is a usage error."""
        try:
            self.check(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Propose the beginnings of urls."""
        return proposals(self.beginnings(), incomplete)


def _check_device(url: str) -> None:
    if url != EMBEDDED:
        parse_device(url)


def _beginnings(schemes: Sequence[str]) -> Iterator[str]:
    for scheme in schemes:
        if scheme == "stream":
            yield from (f"stream:{name}" + ":" * (name != "stdio") for name in ADDRESSES)
        else:
            yield f"{scheme}:"


def _devices() -> list[str]:
    found = [f"pci:{address}" for address in binding.candidates()]
    others = [scheme for scheme in KINDS if scheme != "pci"]
    return [EMBEDDED, KERNEL, *found, *_beginnings(others)]


DEVICE_URL = Url(_check_device, _devices)
LISTEN_URL = Url(parse_listener, lambda: list(_beginnings(list(LISTENERS))))
