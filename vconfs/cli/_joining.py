"""Copying between a port and standard input and output."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from vconfs.cli._mount_table import in_time, is_guest_folder
from vconfs.errors import VconfsError
from vconfs.syntax.printable import printable
from vconfs.system.standard_streams import closed_streams

_CHUNK = 1 << 16
_STDIN, _STDOUT, _STDERR = 0, 1, 2


@contextmanager
def opened(port: Path, flags: int) -> Iterator[int]:
    """Open a port's file for the block.

    Raise VconfsError if that fails, or if it is to be read and there is no standard output.
    """
    if flags != os.O_WRONLY and (closed := closed_streams(_STDOUT)):
        raise VconfsError(f"{closed}: what comes from the port would be lost")
    try:
        descriptor = in_time(port, lambda: os.open(port, flags))
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.EBUSY:
            openers = os.getxattr(port, "user.openers").decode(errors="replace")
            mine = f"it is exclusive, and open by {openers}"
            reason = mine if openers else "another program is connected in its place"
        raise VconfsError(f"{port}: {reason}") from None
    try:
        yield descriptor
    except BrokenPipeError:
        os._exit(1)  # the reader of our output is gone; at exit Python would report that again
    except OSError as error:
        raise VconfsError(f"{port}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def wait_for_host(path: Path, port: int) -> None:
    """Wait until the other end has its side of the port open, or there is something to read.

    If standard error is a terminal, print that we wait.
    """
    now = select.poll()
    now.register(port, select.POLLIN)
    with select.epoll() as changes:
        # With EPOLLIN alone, a host that opens its side and sends nothing is not noticed.
        changes.register(port, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        said = not os.isatty(_STDERR)
        while any(mask & select.POLLHUP for _, mask in now.poll(0)):
            if int(os.getxattr(path, "user.queued")):
                return
            if not said:
                peer = "guest" if is_guest_folder(path.resolve().parent) else "host"
                click.echo(f"waiting for the {peer} of {printable(path.name)}…", err=True)
                said = True
            changes.poll()


def port_to_stdout(port: int) -> None:
    """Copy to standard output until the host hangs up."""
    while rest := memoryview(os.read(port, _CHUNK)):
        while rest:
            rest = rest[_write_to_stdout(rest) :]


def _write_to_stdout(data: memoryview) -> int:
    try:
        return os.write(_STDOUT, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise VconfsError(f"standard output: {error.strerror}") from None


def stdin_to_port(port: int) -> None:
    """Copy standard input to the port until its end, waiting while the host wants no more data."""
    while data := os.read(_STDIN, _CHUNK):
        _write_to_port(port, data)


def _write_to_port(port: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(port, rest) :]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            room = select.poll()
            room.register(port, select.POLLOUT)
            room.poll()  # the host has throttled the port
