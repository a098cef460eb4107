"""How many bytes wait in the kernel, on either side of a descriptor."""

from __future__ import annotations

import fcntl
import struct
import termios


def bytes_to_read(descriptor: int) -> int:
    """Return how many bytes can be read now from a pipe (either end), terminal or socket.

    Raise OSError if the descriptor is of another kind.
    """
    return _ask(descriptor, termios.FIONREAD)


def bytes_to_send(descriptor: int) -> int:
    """Return how many sent bytes a terminal line has not sent, or a socket's peer has not taken.

    The peer of a unix socket is the program, and its own overhead counts; that of a TCP socket is
    the kernel. Raise OSError if the descriptor is of another kind.
    """
    return _ask(descriptor, termios.TIOCOUTQ)


def _ask(descriptor: int, request: int) -> int:
    answer = fcntl.ioctl(descriptor, request, bytes(4))
    return int(struct.unpack("i", answer)[0])
