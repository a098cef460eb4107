"""Listening sockets, unix and TCP, and accepting clients on them."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Final, Self

import trio

from vconfs.errors import VconfsError
from vconfs.syntax.addresses import bracketed
from vconfs.system.backoff import Backoff, is_passing
from vconfs.system.edges import Watch
from vconfs.system.file_access import PRIVATE, FileAccess
from vconfs.system.own_mounts import refuse_own
from vconfs.system.path_errors import cannot
from vconfs.system.unix_sockets import closing, refuse_rights

#: The most clients that may wait while one is served.
BACKLOG: Final = 4
_WAYS_OUT: Final = {
    errno.EADDRINUSE: ": choose another port",
    errno.EACCES: ": choose a port above 1023",
    errno.EADDRNOTAVAIL: ": choose an address of this machine",
}


class Door:
    """Several listening sockets that are used as one."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners
        for listener in listeners:
            listener.setblocking(False)
        #: The descriptors, each with the event that a client waits.
        self.events: Mapping[int, int] = {it.fileno(): select.EPOLLIN for it in listeners}
        self._watch = Watch(self.events) if len(listeners) > 1 else None
        self._tries = Backoff("clients have to wait", "clients are let in again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._watch is not None:
            self._watch.close()

    async def wait(self) -> None:
        """Wait until a client waits."""
        if self._watch is not None:
            await self._watch.wait()
        else:
            await trio.lowlevel.wait_readable(self._listeners[0])

    async def accept(self) -> trio.socket.SocketType:
        """Wait for a client and accept it."""
        while True:
            await self.wait()
            for listener in self._listeners:
                try:
                    client = trio.socket.from_stdlib_socket(listener.accept()[0])
                except BlockingIOError:  # the client came to another listener, or has left again
                    continue
                except OSError as error:
                    if is_passing(error):
                        await self._tries.failed(error)
                else:
                    self._tries.succeeded()
                    return client


# --- unix sockets -------------------------------------------------------------------------


@contextmanager
def listening_at(
    path: str,
    kind: int = socket.SOCK_STREAM,
    *,
    access: FileAccess | None = None,
    backlog: int = BACKLOG,
    rights: bool = False,
) -> Iterator[socket.socket]:
    """Listen on a unix socket while the block runs. Raise VconfsError if that fails.

    `access` says who may connect; without it the umask does. Clients may send descriptors only if
    `rights` is true.
    """
    with closing(socket.socket(socket.AF_UNIX, kind)) as listener:
        if not rights:
            refuse_rights(listener)
        if access:
            os.fchmod(listener.fileno(), PRIVATE)  # the path has this mode from the start
        with _bound(listener, path):
            if access:
                _set_access(path, access)
            listener.listen(backlog)
            yield listener


def _set_access(path: str, access: FileAccess) -> None:
    try:
        access.apply_to_socket(path)
    except OSError as error:
        raise cannot(path, error) from None


@contextmanager
def _bound(listener: socket.socket, path: str) -> Iterator[None]:
    """Bind, replacing a socket on which no process listens any more; remove ours at the end."""
    try:
        refuse_own(path)
        _replace_stale(path, listener.type)
        listener.bind(path)
        ours = os.lstat(path)
    except OSError as error:
        raise cannot(path, error) from None
    try:
        yield
    finally:
        with suppress(OSError):
            if os.path.samestat(os.lstat(path), ours):  # otherwise it was replaced meanwhile
                os.unlink(path)


def _replace_stale(path: str, kind: int) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing is there, or bind will report the error
    if not stat.S_ISSOCK(mode):
        raise VconfsError(f"{path} exists and is not a socket: choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code in (0, errno.EAGAIN, errno.EPROTOTYPE):
        raise VconfsError(f"{path} is in use by another program: choose another path")
    if code == errno.ECONNREFUSED:
        with suppress(OSError):
            os.unlink(path)


# --- TCP ----------------------------------------------------------------------------------


@asynccontextmanager
async def listening_on(
    host: str, service: int, *, backlog: int = BACKLOG
) -> AsyncIterator[Sequence[socket.socket]]:
    """Listen on a TCP port while the block runs, on all addresses of the host's name.

    Raise VconfsError if that fails.
    """
    with ExitStack() as stack:
        try:
            listeners = await _listen(host, service, stack, backlog)
        except (OSError, UnicodeError) as error:
            raise _cannot_listen(host, service, error) from None
        yield listeners


async def _listen(host: str, service: int, stack: ExitStack, backlog: int) -> list[socket.socket]:
    found = await trio.socket.getaddrinfo(host, service, type=socket.SOCK_STREAM)
    listeners: list[socket.socket] = []
    for last, (family, kind, protocol, _, address) in enumerate(found, 1 - len(found)):
        try:
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            _listen_at(listener, address, backlog)
        except OSError as error:
            # A name may have IPv6 addresses although this machine has no IPv6.
            absent = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
            if not absent or (last == 0 and not listeners):
                raise
        else:
            listeners.append(listener)
    return listeners


def _listen_at(listener: socket.socket, address: tuple[object, ...], backlog: int) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(address)
    listener.listen(backlog)


def _cannot_listen(host: str, service: int, error: OSError | UnicodeError) -> VconfsError:
    what, way_out = "this is not a host name", ""
    if isinstance(error, OSError):
        what, way_out = error.strerror or str(error), _WAYS_OUT.get(error.errno or 0, "")
    return VconfsError(f"cannot listen on {bracketed(host)}:{service}: {what}{way_out}")
