"""Unwanted descriptors, which must not block anything, on kernels of any age."""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.faults.hostile import lingering_socket
from vconfs.host._stream_guests import serve_stream
from vconfs.host.chardev import parse_chardev
from vconfs.host.control_socket import serve_control
from vconfs.host.host import open_host
from vconfs.host.port import HostPortSpec
from vconfs.system import unix_sockets
from vconfs.system.aside import is_eventfd, is_memory, is_pipe, is_unix_socket
from vconfs.system.tasks import open_background
from vconfs.system.unix_sockets import close_socket, refuse_rights, takes_rights

#: Seconds that the loop may be away; the socket lingers for ten.
AWAY = 1.0


@pytest.fixture
def old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be on a kernel that cannot refuse descriptors."""
    monkeypatch.setattr(unix_sockets, "_SO_PASSRIGHTS", 9999)


@contextmanager
def never_away() -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < AWAY


def give(client: socket.socket, sock: socket.socket) -> None:
    """Send a descriptor, which then only the receiver has."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))
    client.sendmsg([b"bytes\n"], [rights])
    sock.close()


@pytest.mark.usefixtures("old_kernel")
@pytest.mark.parametrize("where", ["unix", "seqpacket", "stream", "control"])
@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
@pytest.mark.expect_log("trying again")
async def test_descriptors_in_sockets_are_closed_in_threads(
    tmp_path: Path, where: str, reads: bool
) -> None:
    chardevs = [parse_chardev(f"{kind}:{tmp_path}/{kind}") for kind in ("unix", "seqpacket")]
    specs = [HostPortSpec(b"", chardev) for chardev in chardevs]
    kind = socket.SOCK_SEQPACKET if where == "seqpacket" else socket.SOCK_STREAM
    with lingering_socket() as sock, socket.socket(socket.AF_UNIX, kind) as client:
        async with open_host(specs) as host, open_background() as nursery:
            await nursery.start(serve_control, host, f"{tmp_path}/control")
            await nursery.start(serve_stream, host, f"unix:{tmp_path}/stream", None)
            client.connect(f"{tmp_path}/{where}")
            give(client, sock)
            with never_away():
                for _ in range(10 if reads else 0):
                    await trio.sleep(0.01)
            begun = time.monotonic()
        assert time.monotonic() - begun < AWAY


def can_refuse(sock: socket.socket) -> bool:
    """True if this kernel has SO_PASSRIGHTS: Linux 6.16 and later."""
    with suppress(OSError):
        return bool(sock.getsockopt(socket.SOL_SOCKET, unix_sockets._SO_PASSRIGHTS))
    return False


def test_a_kernel_that_can_refuse_descriptors_does() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        able = can_refuse(ours)
        assert takes_rights(ours)
        refuse_rights(ours)
        assert takes_rights(ours) is not able
        if not able:
            return
        fds = array.array("i", [0])
        with pytest.raises(PermissionError):
            theirs.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


async def test_a_socket_with_nothing_unread_is_closed_at_once() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        fd = ours.fileno()
        close_socket(ours)
        with pytest.raises(OSError):
            os.fstat(fd)
        assert theirs.recv(1) == b""


def test_kinds_of_descriptors() -> None:
    reader, writer = os.pipe()
    event, memory = os.eventfd(0), os.memfd_create("pipe:[1]")
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
        all_of_them = [reader, writer, event, memory, unix.fileno(), tcp.fileno()]
        kinds = [
            [kind(fd) for kind in (is_pipe, is_eventfd, is_memory, is_unix_socket)].index(True)
            for fd in all_of_them[:-1]
        ]
        assert kinds == [0, 0, 1, 2, 3]
        assert not is_unix_socket(tcp.fileno())
    for fd in (reader, writer, event, memory):
        os.close(fd)
