"""Asking the kernel if a unix socket's connection was accepted (sock_diag(7)).

connect(2) succeeds as soon as there is room in the backlog of the server, which may serve another
client and never accept ours. The kernel's report of a socket has the inode of its peer: that is 0
until the server has accepted the connection, and again once it has closed its side.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import closing
from typing import Final

import trio

from vconfs.system.queue_sizes import bytes_to_read

_NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
_SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h
_NLM_F_REQUEST: Final = 1
_SHOW_PEER: Final = 0x4  # linux/unix_diag.h
_PEER: Final = 2
#: nlmsghdr: length, type, flags, sequence number, port.
_HEAD: Final = struct.Struct("=IHHII")
#: unix_diag_req: family, protocol, padding, states, inode, what to show, cookie (any).
_REQUEST: Final = struct.Struct("=BBHIIIII")
#: unix_diag_msg: family, type, state, padding, inode, cookie. Attributes follow.
_ANSWER: Final = struct.Struct("=BBBBIII")
#: nlattr: length, type.
_ATTRIBUTE: Final = struct.Struct("=HH")
_INODE: Final = struct.Struct("=I")
_ALL: Final = 0xFFFF_FFFF
_ANSWER_MAX: Final = 4096
#: Seconds between the first two questions; the pauses double up to the last.
_FIRST_PAUSE: Final = 0.0005
_LAST_PAUSE: Final = 0.05


async def wait_accepted(sock: trio.socket.SocketType, patience: float) -> bool:
    """Wait for up to `patience` seconds until the server has accepted a new connection.

    Return False if it has not, or if it has closed the connection and sent nothing. Return True if
    the kernel does not say.
    """
    deadline = trio.current_time() + patience
    pause = _FIRST_PAUSE
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    while True:
        accepted = is_accepted(sock)
        events = sum(mask for _, mask in poll.poll(0))
        if events & select.POLLHUP:
            return bytes_to_read(sock.fileno()) > 0
        if accepted is not False:
            return True
        if trio.current_time() >= deadline:
            return False
        await trio.sleep(pause)
        pause = min(2 * pause, _LAST_PAUSE)


def is_accepted(sock: socket.socket | trio.socket.SocketType) -> bool | None:
    """True if the connection has a peer now, False if not, None if the kernel does not say.

    A kernel can lack this report, and a filter of system calls can refuse it.
    """
    inode = os.fstat(sock.fileno()).st_ino
    try:
        peer = _peer_of(inode)
    except OSError:
        return None
    return None if peer is None else peer != 0


def _peer_of(inode: int) -> int | None:
    """Return the inode of a unix socket's peer; None if the kernel does not say. Raise OSError."""
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with closing(socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)) as diag:
        size = _HEAD.size + _REQUEST.size
        head = _HEAD.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
        request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL, inode & _ALL, _SHOW_PEER, _ALL, _ALL)
        diag.send(head + request)
        answer = diag.recv(_ANSWER_MAX)
    size, kind, *_ = _HEAD.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:  # an error
        return None
    at = _HEAD.size + _ANSWER.size
    while at + _ATTRIBUTE.size <= min(size, len(answer)):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _PEER:
            return int(_INODE.unpack_from(answer, at + _ATTRIBUTE.size)[0])
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return None
