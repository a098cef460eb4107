"""Where the host end listens for guests: the urls of `vconfs host --listen`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import trio
from attrs import field, frozen

from vconfs.host._stream_guests import serve_stream
from vconfs.host.host import Host
from vconfs.host.vhost_user.address import VhostUserAddress
from vconfs.host.vhost_user.front_ends import serve_vhost_user
from vconfs.protocol.dialect import DIALECTS
from vconfs.streams.url import DIALECT as STREAM_DIALECT
from vconfs.streams.url import parse_stream_address


class Serve(Protocol):
    """The way in which the guests of a scheme are served."""

    async def __call__(
        self, host: Host, rest: str, dialect: str | None, task_status: trio.TaskStatus[None]
    ) -> None:
        """Serve guests, one at a time, until no more can connect.

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


@frozen
class Listener:
    """A place where the host end waits for guests."""

    url: str
    dialect: str | None
    _serve: Serve
    _rest: str

    async def serve(
        self, host: Host, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve the guests that connect there, until no more can.

        Raise VconfsError if it cannot listen.
        """
        await self._serve(host, self._rest, self.dialect, task_status)


def parse_listener(url: str, dialect: str | None = None) -> Listener:
    """Parse a LISTEN url; raise ValueError if it is wrong."""
    scheme, _, rest = url.partition(":")
    kind = LISTENERS.get(scheme)
    if kind is None:
        known = ", ".join(f"{name}:…" for name in LISTENERS)
        raise ValueError(f"cannot listen on {url!r}: use one of {known}")
    kind.check(rest)
    if dialect is not None and dialect not in kind.dialects:
        raise ValueError(f"{scheme}: guests speak {' or '.join(kind.dialects)}, not {dialect}")
    return Listener(url, dialect, kind.serve, rest)
