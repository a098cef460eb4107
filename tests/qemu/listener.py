"""Sockets that are listened on before QEMU starts."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def listener(path: Path) -> socket.socket:
    """Listen before QEMU starts, so that no test has to wait for the socket."""
    path.unlink(missing_ok=True)  # of a machine that was here before
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(os.fspath(path))
    sock.listen(1)
    return sock
