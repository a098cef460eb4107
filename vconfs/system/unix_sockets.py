"""Unix sockets: connecting to one, and refusing a peer's descriptors.

A peer can send descriptors (SCM_RIGHTS) on any unix socket, wanted or not. The kernel closes those
that are not received, but in our process: if one is a socket that lingers, our process blocks. So
either the kernel refuses them (SO_PASSRIGHTS, Linux 6.16), or we receive them and close them in a
thread (see `system.aside`).
"""

from __future__ import annotations

import array
import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

import trio

from vconfs.system.aside import close_descriptors
from vconfs.system.own_mounts import refuse_own
from vconfs.system.queue_sizes import bytes_to_read

S = TypeVar("S", socket.socket, trio.socket.SocketType)

_SO_PASSRIGHTS: Final = 83  # asm-generic/socket.h; Python has no name for it
_INT: Final = array.array("i").itemsize
#: Space for the most descriptors that Linux allows in a message.
_RIGHTS_SPACE: Final = socket.CMSG_SPACE(253 * _INT)
#: Seconds between two tries to connect while a backlog is full.
_BACKLOG_PAUSE: Final = 0.01


async def connected_to(
    path: str, *, rights: bool = False, patience: float = 0.0
) -> trio.socket.SocketType:
    """Connect to a unix socket. Raise OSError if no process listens on it, or its backlog is full.

    A full backlog is tried again for `patience` seconds. Descriptors are accepted only if `rights`
    is true.
    """
    refuse_own(path)
    deadline = trio.current_time() + patience
    while True:
        sock = trio.socket.socket(socket.AF_UNIX)
        try:
            if not rights:
                refuse_rights(sock)
            await sock.connect(path)
            sock.getpeername()  # fails on a full backlog (EAGAIN), which trio takes for EINPROGRESS
        except OSError as error:
            sock.close()
            if error.errno != errno.ENOTCONN or trio.current_time() >= deadline:
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return sock
        await trio.sleep(_BACKLOG_PAUSE)


def refuse_rights(sock: socket.socket | trio.socket.SocketType) -> None:
    """Make the kernel refuse descriptors from peers. Accepted sockets inherit this."""
    with suppress(OSError):  # the kernel is older
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def takes_rights(sock: socket.socket | trio.socket.SocketType) -> bool:
    """True if a peer can send descriptors on a socket."""
    if sock.family != socket.AF_UNIX:
        return False
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS))
    except OSError:  # the kernel is older
        return True


async def receive_bytes(sock: trio.socket.SocketType, size: int) -> bytes:
    """Receive bytes, and close the descriptors that come with them. Raise OSError if that fails."""
    data, ancillary, _, _ = await sock.recvmsg(size, _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC)
    close_descriptors(descriptors_in(ancillary))
    return data


async def receive_packet(sock: trio.socket.SocketType, buffer: bytearray) -> int:
    """Like `receive_bytes`, but receive into a buffer and return the full size of the packet."""
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_TRUNC
    size, ancillary, _, _ = await sock.recvmsg_into([buffer], _RIGHTS_SPACE, flags)
    close_descriptors(descriptors_in(ancillary))
    return size


def read_bytes(fd: int, size: int) -> bytes:
    """Like `receive_bytes`, but do not wait. Raise BlockingIOError if nothing has come."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        data, ancillary, _, _ = sock.recvmsg(size, _RIGHTS_SPACE, flags)
    finally:
        sock.detach()
    close_descriptors(descriptors_in(ancillary))
    return data


def descriptors_in(ancillary: Sequence[tuple[int, int, bytes]]) -> array.array[int]:
    """Return the descriptors that came with a message."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) // _INT * _INT])
    return fds


def close_socket(sock: socket.socket | trio.socket.SocketType) -> None:
    """Close a socket without blocking, even if unreceived descriptors wait in it."""
    if sock.fileno() >= 0 and takes_rights(sock):
        close_unread(sock)
    else:
        sock.close()


def close_unread(sock: socket.socket | trio.socket.SocketType) -> None:
    """Close a unix socket that may have descriptors in it: in a thread if anything is unread."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # nothing can come from now on
    if _has_unread(sock):
        trio.lowlevel.notify_closing(sock)
        close_descriptors([sock.detach()])
    else:
        sock.close()


def _has_unread(sock: socket.socket | trio.socket.SocketType) -> bool:
    try:
        return bytes_to_read(sock.fileno()) > 0
    except OSError:
        return True  # a listening socket: a client not accepted yet may have sent something


@contextmanager
def closing(sock: S) -> Iterator[S]:
    """Use a socket while the block runs, then close it by `close_socket`."""
    try:
        yield sock
    finally:
        close_socket(sock)
