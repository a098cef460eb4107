"""Reaching who listens on a unix socket."""

from __future__ import annotations

import socket

import trio


async def connected_to(path: str) -> trio.socket.SocketType:
    """Connect to a unix socket; OSError: nobody listens there, or nobody accepts."""
    sock = trio.socket.socket(socket.AF_UNIX)
    try:
        await sock.connect(path)
        sock.getpeername()  # trio takes EAGAIN, a full backlog, for a connection on its way
    except BaseException:
        sock.close()
        raise
    return sock
