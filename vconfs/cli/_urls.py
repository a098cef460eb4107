"""DEVICE and LISTEN urls on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import click
from attrs import frozen
from click.shell_completion import CompletionItem

from vconfs.cli._arguments import proposals
from vconfs.cli._values import as_typed, last_word, options, paths
from vconfs.device import binding
from vconfs.guest.devices import DEVICES, EMBEDDED, KERNEL, parse_device
from vconfs.host.listeners import LISTENERS, parse_listener
from vconfs.host.vhost_user.address import VHOST_USER_OPTIONS
from vconfs.mirror.sockets import Sockets
from vconfs.streams.stream_address import WINDOW_OPTION
from vconfs.streams.url import ADDRESSES
from vconfs.syntax.url_options import RESIZE_OPTION

#: Beginning of a url of either end → the options that may follow after a comma.
_STREAMS: Final[Mapping[str, Sequence[str]]] = {
    "stream:unix:": (WINDOW_OPTION,),
    "stream:tcp:": (WINDOW_OPTION,),
    "stream:vsock:": (WINDOW_OPTION,),
    "stream:tty:": ("baud=N", WINDOW_OPTION),
    "stream:stdio": (WINDOW_OPTION,),
}
_DEVICES: Final[Mapping[str, Sequence[str]]] = {
    **_STREAMS,
    "vhost-user:": (),
    "pci:": (RESIZE_OPTION,),
    "qtest:": ("addr=SLOT.FUNCTION", RESIZE_OPTION),
    "sockets:": (),
}
_ON_PATHS: Final = ("stream:unix:", "stream:tty:", "vhost-user:", "qtest:", "sockets:")


@frozen
class Url(click.ParamType[str]):
    """A url that is checked when it is parsed, and used later."""

    check: Callable[[str], object]
    beginnings: Callable[[], Sequence[str]]
    #: Beginning of a url → the options that may follow after a comma.
    options: Mapping[str, Sequence[str]]
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
        """Propose the beginnings of urls, then paths, and options after a comma."""
        begin = last_word(incomplete)
        scheme = next((it for it in self.options if incomplete.startswith(it)), None)
        if scheme is None:
            return proposals(self.beginnings(), incomplete)
        if begin:
            names = as_typed(self.options[scheme])
            return proposals(options(incomplete[:begin], names, incomplete[begin:]), incomplete)
        if scheme in _ON_PATHS:
            return proposals(paths(scheme, incomplete.removeprefix(scheme)), incomplete)
        return proposals(self.beginnings(), incomplete)


def _check_device(url: str) -> None:
    if Sockets.has(url):
        Sockets.parse(url)
    elif url != EMBEDDED:
        parse_device(url)


def _beginnings(schemes: Sequence[str]) -> Iterator[str]:
    for scheme in schemes:
        if scheme == "stream":
            yield from (f"stream:{name}" + ":" * (name != "stdio") for name in ADDRESSES)
        else:
            yield f"{scheme}:"


def _devices() -> list[str]:
    found = [f"pci:{address}" for address in binding.candidates()]
    others = [scheme for scheme in DEVICES if scheme not in (EMBEDDED, KERNEL, "pci")]
    return [EMBEDDED, KERNEL, *found, *_beginnings(others)]


DEVICE_URL = Url(_check_device, _devices, _DEVICES)
LISTEN_URL = Url(
    parse_listener,
    lambda: list(_beginnings(list(LISTENERS))),
    {**_STREAMS, "vhost-user:": VHOST_USER_OPTIONS},
)
