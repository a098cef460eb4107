"""The control socket of a host end, by which other programs look at its ports and change them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias, assert_never

import trio

from vconfs.errors import VconfsError
from vconfs.host.fleet import Fleet
from vconfs.host.host import Host
from vconfs.host.port import HostPort
from vconfs.host.spec import parse_port
from vconfs.link.taps import Tapper, Taps
from vconfs.protocol import control
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.lines import LineReader
from vconfs.protocol.tap import TAPPERS_MAX
from vconfs.syntax.paths import socket_path
from vconfs.system.file_access import OUR_OWN
from vconfs.system.listening import Door, listening_at
from vconfs.system.tasks import open_background
from vconfs.system.unix_sockets import closing, receive_bytes

#: How many clients are served at a time, and how many more can wait.
_CLIENTS_MAX: Final = 64
_BACKLOG: Final = 128
#: How many bytes to read from a client at a time.
_CHUNK: Final = 1 << 16
#: The requests that change one port at once.
_Change: TypeAlias = (
    control.Rename | control.Throttle | control.Limit | control.Cache | control.Resize
)


def control_path(path: str) -> str:
    """Return `path` if it can be the path of a control socket, else raise ValueError."""
    if not path:
        raise ValueError("the control socket needs a path")
    return socket_path("control", path)


async def serve_control(
    host: Host | Fleet, path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer the clients of the control socket at `path`, until cancelled.

    Raise VconfsError if there can be no socket.
    """
    clients = trio.Semaphore(_CLIENTS_MAX)
    with listening_at(path, access=OUR_OWN, backlog=_BACKLOG) as listener, Door([listener]) as door:
        async with open_background() as nursery:
            task_status.started()
            while True:
                await clients.acquire()
                client = _Client(host, await door.accept())
                nursery.start_soon(client.serve, clients.release)


class _Client:
    """A client of the control socket; nothing more is read from it until its replies are sent."""

    def __init__(self, host: Host | Fleet, sock: trio.socket.SocketType) -> None:
        self._host = host
        self._sock = sock
        self._stream = trio.SocketStream(sock)
        self._lines = LineReader(control.LINE_MAX)
        #: Set if the client taps ports, from then on.
        self._tapper: Tapper | None = None
        self._tapped: Taps[HostPort] | None = None
        self._recorded = trio.lowlevel.ParkingLot()

    async def serve(self, left: Callable[[], None]) -> None:
        """Answer the client until it leaves, then call `left`."""
        try:
            with closing(self._sock):
                await self._stream.send_all(control.encode_greeting())
                try:
                    while data := await self._receive():
                        await self._answer(data)
                    await self._answer(b"\n")  # the last line may have had no newline
                except RemoteProtocolError as error:  # we cannot find the start of the next line
                    await self._stream.send_all(control.encode_error(str(error)))
        except trio.BrokenResourceError:
            pass  # the client has left
        finally:
            if self._tapper is not None and self._tapped is not None:
                self._tapped.end(self._tapper)
            left()

    async def _receive(self) -> bytes:
        try:
            return await receive_bytes(self._sock, _CHUNK)
        except OSError:
            raise trio.BrokenResourceError from None

    async def _answer(self, data: bytes) -> None:
        for line in filter(bytes.strip, self._lines.feed(data)):
            await self._stream.send_all(await self._reply(line))
            if self._tapper is not None:
                await self._show(self._tapper)

    async def _reply(self, line: bytes) -> bytes:
        try:
            request = control.parse_request(line)
            if isinstance(request, control.Tap):
                return self._begin_to_tap(_guest_of(self._host, request.guest), request.ports)
            return await _answer(self._host, request)
        except (RemoteProtocolError, VconfsError, ValueError) as error:
            return control.encode_error(str(error))

    # --- tapping --------------------------------------------------------------------------

    def _begin_to_tap(self, host: Host, wanted: Sequence[int | str]) -> bytes:
        """Tap these ports of a guest, or all; return the line of the reply."""
        if host.taps.is_full:
            raise VconfsError(f"{TAPPERS_MAX} programs already tap the ports: end one of them")
        ports = {port.id: port for port in [_find(host, port) for port in wanted]}
        self._tapper = Tapper(self._wake)
        if ports:
            self._tapper.wanted = frozenset(ports)
        self._tapped = host.taps
        host.taps.begin(self._tapper)
        shown = ports.values() if ports else _all_ports(host)
        return control.encode_ports([describe(port, host.name) for port in shown])

    def _wake(self) -> None:
        self._recorded.unpark_all()

    async def _show(self, tapper: Tapper) -> None:
        """Send the records of a tapper until the client leaves, or the guest is removed."""
        async with open_background() as nursery:
            nursery.start_soon(self._send_records, tapper, nursery.cancel_scope)
            while await self._receive():
                pass
        raise trio.BrokenResourceError

    async def _send_records(self, tapper: Tapper, showing: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):  # `_show` finds it, too
            while (lines := tapper.backlog.take(_CHUNK)) or not tapper.ended:
                if lines:
                    await self._stream.send_all(b"".join(lines))
                else:
                    await self._recorded.park()
            showing.cancel()


# --- what the requests do -----------------------------------------------------------------


async def _answer(host: Host | Fleet, request: control.Command) -> bytes:
    """Carry out a request; return the line of the reply."""
    match request:
        case control.GuestList():
            guests = host.guests if isinstance(host, Fleet) else {host.name: host}
            return control.encode_guests([_describe_guest(guests[name]) for name in sorted(guests)])
        case control.GuestAdd():
            added = await _several(host).add_by_name(request.name)
            return control.encode_guests([_describe_guest(added)])
        case control.GuestRemove():
            await _several(host).remove(request.name)
            return control.encode_guests([])
        case control.List() if request.guest is None and isinstance(host, Fleet):
            hosts = [host.guests[name] for name in sorted(host.guests)]
            ports = [describe(port, one.name) for one in hosts for port in _all_ports(one)]
            return control.encode_ports(ports)
        case _:
            one = _guest_of(host, request.guest)
            changed = await _carry_out(one, request)
            return control.encode_ports([describe(port, one.name) for port in changed])


def _several(host: Host | Fleet) -> Fleet:
    if not isinstance(host, Fleet):
        raise VconfsError("this host end is in the process of its only guest")
    return host


def _guest_of(host: Host | Fleet, name: str | None) -> Host:
    if isinstance(host, Fleet):
        if name is None and len(host.guests) != 1:
            raise VconfsError(f"there are {len(host.guests)} guests: say which one with --guest")
        return host.find(name)
    if name not in (None, host.name):
        raise VconfsError(f"there is no guest {name!r}")
    return host


async def _carry_out(host: Host, request: control.PortRequest) -> list[HostPort]:
    """Carry out a request about the ports of one guest; return the ports to show."""
    match request:
        case control.List():
            return _all_ports(host)
        case control.Add():
            return [await host.add(parse_port(request.spec))]
        case control.Remove():
            await host.remove_when_drained(_find(host, request.port).id)
            return []
        case control.Disconnect():
            port = _find(host, request.port)
            await host.disconnect_when_drained(port.id)
            return [port]
        case _:
            port = _find(host, request.port)
            _change(host, port.id, request)
            return [port]


def _change(host: Host, port_id: int, request: _Change) -> None:
    """Change a port at once."""
    match request:
        case control.Rename():
            host.rename(port_id, os.fsencode(request.name))
        case control.Throttle():
            host.throttle(port_id, request.on)
        case control.Limit():
            host.configure(port_id, limit=request.mib)
        case control.Cache():
            host.configure(port_id, cache=request.on)
        case control.Resize():
            host.resize(port_id, request.cols, request.rows)
        case _:
            assert_never(request)


def _all_ports(host: Host) -> list[HostPort]:
    return [host.ports[port_id] for port_id in sorted(host.ports)]


def _find(host: Host, port: int | str) -> HostPort:
    return host.find(port if isinstance(port, int) else os.fsencode(port))


def _describe_guest(host: Host) -> dict[str, object]:
    """Return a guest's state in the form of control.schema.json."""
    ports = host.ports.values()
    return {
        "name": host.name,
        "connected": host.guest is not None,
        "ports": len(ports),
        "queued": sum(port.queued for port in ports),
        "bytes_in": sum(port.counters.bytes_in for port in ports),
        "bytes_out": sum(port.counters.bytes_out for port in ports),
        "dropped": sum(port.counters.dropped for port in ports),
    }


def describe(port: HostPort, guest_name: str = "") -> dict[str, object]:
    """Return a port's settings and state in the form of control.schema.json."""
    counters, (cols, rows) = port.counters, port.size
    of_guest = {"guest_name": guest_name} if guest_name else {}
    return {
        **of_guest,
        "id": port.id,
        "name": os.fsdecode(port.name),
        "chardev": port.spec.chardev_text,
        "console": port.spec.console,
        "cols": cols,
        "rows": rows,
        "cache": port.cache,
        "limit": port.limit,
        "host_limit": port.spec.host_limit,
        "host": port.connected,
        "guest": _guest(port),
        "throttled_by_hand": port.throttled_by_hand,
        "throttled": port.host_throttled or not port.wants_data,
        "guest_throttled": port.guest_throttled,
        "queued": port.queued,
        "bytes_in": counters.bytes_in,
        "bytes_out": counters.bytes_out,
        "delivered": port.delivered_bytes,
        "dropped": counters.dropped,
        "resets": counters.resets,
    }


def _guest(port: HostPort) -> str:
    if not port.attached:
        return "absent"
    return "open" if port.guest_connected else "closed"
