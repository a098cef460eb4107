"""The control socket of a host end, by which other programs look at its ports and change them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import trio

from vconfs.errors import VconfsError
from vconfs.host.host import Host
from vconfs.host.port import HostPort
from vconfs.host.spec import parse_port
from vconfs.protocol import control
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.lines import LineReader
from vconfs.syntax.paths import socket_path
from vconfs.system.listening import Door, listening_at
from vconfs.system.tasks import open_background
from vconfs.system.unix_sockets import closing, receive_bytes

#: How many clients are served at a time, and how many more can wait.
_CLIENTS_MAX: Final = 64
_BACKLOG: Final = 128
#: How many bytes to read from a client at a time.
_CHUNK: Final = 1 << 16
#: Only the owner of the host end may control it.
_MODE: Final = 0o600


def control_path(path: str) -> str:
    """Return `path` if it can be the path of a control socket; ValueError says why not."""
    if not path:
        raise ValueError("the control socket needs a path")
    return socket_path("control", path)


async def serve_control(
    host: Host, path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer the clients of the control socket at `path`, until cancelled.

    Raise VconfsError if there can be no socket.
    """
    clients = trio.Semaphore(_CLIENTS_MAX)
    with listening_at(path, mode=_MODE, backlog=_BACKLOG) as listener, Door([listener]) as door:
        async with open_background() as nursery:
            task_status.started()
            while True:
                await clients.acquire()
                client = _Client(host, await door.accept())
                nursery.start_soon(client.serve, clients.release)


class _Client:
    """A client of the control socket; nothing more is read from it until its replies are sent."""

    def __init__(self, host: Host, sock: trio.socket.SocketType) -> None:
        self._host = host
        self._sock = sock
        self._stream = trio.SocketStream(sock)
        self._lines = LineReader(control.LINE_MAX)

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
            left()

    async def _receive(self) -> bytes:
        try:
            return await receive_bytes(self._sock, _CHUNK)
        except OSError:
            raise trio.BrokenResourceError from None

    async def _answer(self, data: bytes) -> None:
        for line in filter(bytes.strip, self._lines.feed(data)):
            await self._stream.send_all(await self._reply(line))

    async def _reply(self, line: bytes) -> bytes:
        try:
            request = control.parse_request(line)
            ports = await _ACTIONS[type(request)](self._host, request)
        except (RemoteProtocolError, VconfsError, ValueError) as error:
            return control.encode_error(str(error))
        return control.encode_ports([describe(port) for port in ports])


# --- what the requests do -----------------------------------------------------------------


_Action: TypeAlias = Callable[[Host, Any], Awaitable[list[HostPort]]]


async def _list(host: Host, request: control.List) -> list[HostPort]:
    return [host.ports[port_id] for port_id in sorted(host.ports)]


async def _add(host: Host, request: control.Add) -> list[HostPort]:
    return [await host.add(parse_port(request.spec))]


async def _remove(host: Host, request: control.Remove) -> list[HostPort]:
    await host.remove_when_drained(_find(host, request.port).id)
    return []


async def _disconnect(host: Host, request: control.Disconnect) -> list[HostPort]:
    port = _find(host, request.port)
    await host.disconnect_when_drained(port.id)
    return [port]


def _change(apply: Callable[[Host, int, Any], None]) -> _Action:
    """Return the action of a request that changes one port at once."""

    async def act(host: Host, request: Any) -> list[HostPort]:
        port = _find(host, request.port)
        apply(host, port.id, request)
        return [port]

    return act


def _find(host: Host, port: int | str) -> HostPort:
    return host.find(port if isinstance(port, int) else os.fsencode(port))


_ACTIONS: Final[Mapping[type[control.Request], _Action]] = {
    control.List: _list,
    control.Add: _add,
    control.Remove: _remove,
    control.Rename: _change(lambda host, port_id, it: host.rename(port_id, os.fsencode(it.name))),
    control.Throttle: _change(lambda host, port_id, it: host.throttle(port_id, it.on)),
    control.Limit: _change(lambda host, port_id, it: host.configure(port_id, limit=it.mib)),
    control.Cache: _change(lambda host, port_id, it: host.configure(port_id, cache=it.on)),
    control.Resize: _change(lambda host, port_id, it: host.resize(port_id, it.cols, it.rows)),
    control.Disconnect: _disconnect,
}


def describe(port: HostPort) -> dict[str, object]:
    """Return a port's settings and state in the form of control.schema.json."""
    counters, (cols, rows) = port.counters, port.size
    return {
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
        "dropped": counters.dropped,
        "resets": counters.resets,
    }


def _guest(port: HostPort) -> str:
    if not port.attached:
        return "absent"
    return "open" if port.guest_connected else "closed"
