"""Sending requests to a host end through its control socket."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from vconfs.errors import VconfsError
from vconfs.protocol import control
from vconfs.protocol.errors import RemoteProtocolError

#: Seconds to wait for the greeting of a host end.
_PATIENCE: Final = 5.0
#: The longest reply that is accepted, in bytes.
_REPLY_MAX: Final = 1 << 26
#: How many bytes of records to read at a time.
_CHUNK: Final = 1 << 16


def ask(path: Path, request: control.Request) -> list[dict[str, Any]]:
    """Send a request to the host end with the control socket `path`; return the ports of its reply.

    Raise VconfsError if there is no host end, or it refuses.
    """
    with _asked(path, request) as (ports, _):
        return ports


def ask_to_tap(path: Path, request: control.Tap) -> Iterator[bytes]:
    """Send a request to tap; yield the bytes of the records until the host end has ended.

    Raise VconfsError like `ask`.
    """
    with _asked(path, request) as (_, records):
        try:
            while chunk := records.read1(_CHUNK):
                yield chunk
        except OSError:
            return  # the host end was killed


@contextmanager
def _asked(
    path: Path, request: control.Request
) -> Iterator[tuple[list[dict[str, Any]], io.BufferedReader]]:
    """Send a request; yield the ports of the reply, and what comes after it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(os.fspath(path))
            replies = sock.makefile("rb")
            _check_greeting(path, replies)
            sock.settimeout(None)  # to start a chardev can take long
            sock.sendall(control.encode_request(request))
            line = replies.readline(_REPLY_MAX)
        except TimeoutError:
            raise VconfsError(
                f"{path}: no answer: this is not a control socket of vconfs, or its host end is"
                " stopped"
            ) from None
        except OSError as error:
            raise VconfsError(f"{path}: {_why(path, error)}") from None
        with replies:
            yield _ports_in(path, line), replies


def _ports_in(path: Path, line: bytes) -> list[dict[str, Any]]:
    """Return the ports in a reply; raise VconfsError if it is an error, or not a reply."""
    if not line:
        raise VconfsError(f"{path}: the host end has ended before it answered")
    try:
        reply = control.parse_reply(line)
    except RemoteProtocolError:
        raise VconfsError(f"{path} is not a control socket of vconfs") from None
    if isinstance(reply, str):
        raise VconfsError(reply)
    return reply


def _check_greeting(path: Path, replies: IO[bytes]) -> None:
    """Check that a host end listens there before sending: another program might act on it."""
    try:
        version = control.parse_greeting(replies.readline(control.LINE_MAX))
    except RemoteProtocolError:
        raise VconfsError(f"{path} is not a control socket of vconfs") from None
    if version != control.VERSION:
        raise VconfsError(
            f"{path}: the host end speaks version {version} of the control protocol,"
            f" and we {control.VERSION}: use its own `vconfs ctl`"
        )


def _why(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"there is no such socket: start a host end with --control {path}"
        case errno.ECONNREFUSED if not stat.S_ISSOCK(path.stat().st_mode):
            return "this is not a socket"
        case errno.ECONNREFUSED:
            return f"no program listens there: start a host end with --control {path}"
        case errno.EPROTOTYPE:
            return "this is not a control socket of vconfs"
        case errno.EACCES:
            return "only the user who runs the host end may use it"
    return error.strerror or str(error)
