"""Target: the kernel's FUSE requests, answered by the session with the ports' file system."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import trio
import trio.testing

from vconfs.files.announcer import Announcer
from vconfs.files.folder import Folder
from vconfs.files.tree import Access
from vconfs.fs import PortFS
from vconfs.fuse import Session
from vconfs.fuse._kernel_protocol import (
    IN_HEADER,
    INIT_IN,
    OUT_HEADER,
    UNANSWERED,
    InitFlag,
    Opcode,
)
from vconfs.guest.port import PortOptions
from vconfs.guest.ports import PortManager

from .target import Source, target

#: No reply here is longer: the ports have little data and short names.
_REPLY_MAX = 1 << 16
#: An input makes this opcode of a packet that is not even a whole header.
RAW = 0xFF
INIT = INIT_IN.pack(7, 38, 1 << 17, sum(InitFlag))


class _Failures(logging.Handler):
    """Keeps the errors that handlers did not expect.

    Only the kernel can name a file or a handle that does not exist, so a KeyError is no fault.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, KeyError):
            self.errors.append(error)


@contextmanager
def _no_failures() -> Iterator[None]:
    log, failures = logging.getLogger("vconfs.fuse._session"), _Failures()
    log.addHandler(failures)
    before, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.removeHandler(failures)
        log.propagate = before
    if failures.errors:
        raise failures.errors[0]


def _requests(source: Source) -> Iterator[tuple[int, int, bytes]]:
    """Yield (opcode, number, packet) of each request: [opcode] [node] [length] body."""
    yield Opcode.INIT, 2, _packet(Opcode.INIT, 2, 0, INIT)
    number = 2
    while source.more:
        number += 2
        opcode, node, body = source.number(), source.number(), source.piece(2)
        if opcode == RAW:
            if body[:39]:
                yield opcode, number, body[:39]
        else:
            yield opcode, number, _packet(opcode, number, node, body)


def _packet(opcode: int, number: int, node: int, body: bytes) -> bytes:
    size = IN_HEADER.size + len(body)
    return IN_HEADER.pack(size, opcode, number, node, os.getuid(), 0, os.getpid(), 0, 0) + body


async def _serve(source: Source) -> None:
    manager = PortManager(lambda port_id: PortOptions(limit=4096))
    for port_id in range(3):
        manager.rename(manager.add(port_id), b"port%d" % port_id)
    access = Access()
    announcer = Announcer()
    folder = Folder.of(manager, lambda port_id: access, access, announcer)
    filesystem = PortFS(folder, announcer)
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    answered: dict[int, int] = {}
    asked: set[int] = set()
    with kernel, device:
        kernel.setblocking(False)
        device.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Session(filesystem, device.fileno()).run)
            for opcode, number, packet in _requests(source):
                kernel.send(packet)
                if opcode != RAW and opcode not in UNANSWERED:
                    asked.add(number)
                await trio.testing.wait_all_tasks_blocked()
                _take_replies(kernel, answered)
            nursery.cancel_scope.cancel()
        _take_replies(kernel, answered)
    assert answered.keys() == asked, "a request has no answer, or an answer no request"
    await filesystem.shut()


def _take_replies(kernel: socket.socket, answered: dict[int, int]) -> None:
    while True:
        try:
            reply = kernel.recv(_REPLY_MAX)
        except BlockingIOError:
            return
        size, error, number = OUT_HEADER.unpack_from(reply)
        assert size == len(reply)
        if number:  # it is not a notification
            assert number not in answered, "a request was answered twice"
            assert -512 < error <= 0 and (not error or size == OUT_HEADER.size)
            answered[number] = error


@target()
def fuse_requests(data: bytes) -> None:
    with _no_failures():
        trio.run(_serve, Source(data))


def as_input(packet: bytes) -> bytes:
    """Return a recorded packet as a part of an input for `fuse_requests`."""
    _, opcode, _, node, *_ = IN_HEADER.unpack_from(packet)
    body = packet[IN_HEADER.size :]
    return struct.pack("<BBH", opcode, min(node, 255), len(body)) + body
