"""Asking a host end through its control socket."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import IO, Any, Final

from vconfs.errors import VconfsError
from vconfs.protocol import control
from vconfs.protocol.errors import RemoteProtocolError

#: Seconds in which a host that is alive has greeted us.
_PATIENCE: Final = 5.0
#: The longest reply that is believed, in bytes.
_REPLY_MAX: Final = 1 << 26


def ask(path: Path, request: control.Request) -> list[dict[str, Any]]:
    """Ask the host end whose control socket is at `path`, and give the ports that it tells of.

    Raises VconfsError: there is no such host end, or it refuses.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(os.fspath(path))
            with sock.makefile("rb") as replies:
                _check_greeting(path, replies)
                sock.settimeout(None)  # to start a chardev can take long
                sock.sendall(control.encode_request(request))
                line = replies.readline(_REPLY_MAX)
        except TimeoutError:
            raise VconfsError(
                f"{path}: nobody answers: this is no control socket of vconfs, or its host end is"
                " stopped"
            ) from None
        except OSError as error:
            raise VconfsError(f"{path}: {_why(path, error)}") from None
    if not line:
        raise VconfsError(f"{path}: the host end has ended before it answered")
    try:
        reply = control.parse_reply(line)
    except RemoteProtocolError:
        raise VconfsError(f"{path} is no control socket of vconfs") from None
    if isinstance(reply, str):
        raise VconfsError(reply)
    return reply


def _check_greeting(path: Path, replies: IO[bytes]) -> None:
    """Know a host end before saying anything: what else listens there might act on it."""
    try:
        version = control.parse_greeting(replies.readline(control.LINE_MAX))
    except RemoteProtocolError:
        raise VconfsError(f"{path} is no control socket of vconfs") from None
    if version != control.VERSION:
        raise VconfsError(
            f"{path}: the host end speaks version {version} of the control protocol,"
            f" and we {control.VERSION}: use its own `vconfs ctl`"
        )


def _why(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"there is no such socket: start `vconfs host --control {path}` first"
        case errno.ECONNREFUSED if not stat.S_ISSOCK(path.stat().st_mode):
            return "this is no socket"
        case errno.ECONNREFUSED:
            return f"nobody listens there: start `vconfs host --control {path}` first"
        case errno.EPROTOTYPE:
            return "this is no control socket of vconfs"
        case errno.EACCES:
            return "it is for the one who runs `vconfs host` only"
    return error.strerror or str(error)
