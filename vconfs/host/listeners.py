"""Where the host end listens for guests: the urls of `vconfs host --listen`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import trio
from attrs import field, frozen

from vconfs.host._stream_guests import Welcome, serve_stream
from vconfs.host.host import Host
from vconfs.host.vhost_user.address import VhostUserAddress
from vconfs.host.vhost_user.front_ends import serve_vhost_user
from vconfs.protocol.dialect import DIALECTS
from vconfs.streams.stream_address import StreamAddress
from vconfs.streams.url import DIALECT as STREAM_DIALECT
from vconfs.streams.url import parse_stream_address
from vconfs.syntax.guest_names import guest_name, name_for

#: The name in the url of a listener for any guest.
ANY: Final = "*"


class Serve(Protocol):
    """The way in which the guests of a scheme are served."""

    async def __call__(
        self, host: Any, rest: str, dialect: str | None, task_status: trio.TaskStatus[None]
    ) -> None:
        """Serve guests, those of a `Host` one at a time, until no more can connect.

        `rest` is the url after the scheme. Without a `dialect`, it is the transport's own. Call
        `started` when guests can connect. Raise VconfsError if it is not possible to listen.
        """


@frozen
class Kind:
    """The meaning of a scheme of LISTEN urls."""

    serve: Serve
    #: Reads the url after the scheme; raises ValueError if it is wrong.
    check: Callable[[str], object]
    dialects: Sequence[str] = field(factory=lambda: tuple(DIALECTS))


#: The schemes of LISTEN urls.
LISTENERS: Final[Mapping[str, Kind]] = {
    "stream": Kind(serve_stream, parse_stream_address, dialects=(STREAM_DIALECT,)),
    "vhost-user": Kind(serve_vhost_user, VhostUserAddress.parse),
}


#: The option of a listener that says whose it is, as it is written: NAME, or * for any guest.
GUEST_OPTION: Final = "guest=NAME"
#: ,guest=… at a place where the comma is not doubled.
_GUEST: Final = re.compile(r"(?<!,)(?P<commas>(?:,,)*),guest=(?P<name>[^,]*)(?=,|$)")


@frozen
class Listener:
    """A place where the host end waits for guests.

    `guest` is the name of the guest that it is for, empty if the url does not say one, and `*` if
    it is for any guest that says its name.
    """

    url: str
    dialect: str | None
    guest: str
    #: True if it starts a program, which may need to gain privileges.
    starts_program: bool
    _serve: Serve
    _rest: str

    async def serve(
        self,
        host: Host | Welcome,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve the guests that connect there, until no more can.

        They have the ports of `host`, or those that `Fleet.welcome` finds for the name that each
        says. Raise VconfsError if it cannot listen.
        """
        await self._serve(host, self._rest, self.dialect, task_status)

    @property
    def name(self) -> str:
        """The name of the guest that it is for, by default the file name of its path."""
        return self.guest or name_for(self.url)


def parse_listener(url: str, dialect: str | None = None) -> Listener:
    """Parse a LISTEN url; raise ValueError if it is wrong."""
    scheme, _, rest = url.partition(":")
    kind = LISTENERS.get(scheme)
    if kind is None:
        known = ", ".join(f"{name}:…" for name in LISTENERS)
        raise ValueError(f"cannot listen on {url!r}: use one of {known}")
    rest, guest = _split_guest(rest)
    if guest == ANY and scheme != "stream":
        raise ValueError(f"{scheme}: guests say no name: use a socket for each, not guest=*")
    address = kind.check(rest)
    if dialect is not None and dialect not in kind.dialects:
        raise ValueError(f"{scheme}: guests speak {' or '.join(kind.dialects)}, not {dialect}")
    starts_program = isinstance(address, StreamAddress) and address.starts_program
    return Listener(url, dialect, guest, starts_program, kind.serve, rest)


def _split_guest(rest: str) -> tuple[str, str]:
    """Take the option `guest` out of a url; return the rest and its value."""
    found = list(_GUEST.finditer(rest))
    if not found:
        return rest, ""
    if len(found) > 1:
        raise ValueError("guest is given twice")
    name = found[0]["name"]
    return _GUEST.sub(r"\g<commas>", rest), name if name == ANY else guest_name(name)
