"""Raising and emptying an eventfd that is shared with a peer, without ever blocking.

A write to an eventfd blocks while its counter is full, unless O_NONBLOCK is set. The peer shares
that flag and can clear it between our setting it and our write. Writes to an eventfd take neither
MSG_DONTWAIT nor RWF_NOWAIT, and an eventfd cannot be reopened. But the kernel raises eventfds
itself when asynchronous I/O has finished, and never blocks then: a full counter stays full. So we
read zero bytes from /dev/null (io_submit(2) with IOCB_FLAG_RESFD), which takes two microseconds
longer than the write.

A read blocks while the counter is 0, unless O_NONBLOCK is set; but reads take RWF_NOWAIT.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

# linux/aio_abi.h
_PREAD: Final = 0
_FLAG_RESFD: Final = 1
_EVENT_SIZE: Final = 32

#: The most unfinished or uncollected requests. Finished ones are collected at this limit.
_PLACES: Final = 64
#: The numbers of io_setup, io_getevents and io_submit, by machine.
_NUMBERS: Final = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2), "riscv64": (0, 4, 2)}


class _Iocb(ctypes.Structure):
    """struct iocb, on a little-endian machine."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    )


class Raiser:
    """A way to raise eventfds. Raise OSError if the kernel offers us no asynchronous I/O."""

    def __init__(self) -> None:
        if platform.machine() not in _NUMBERS:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        setup, self._getevents, self._submit = _NUMBERS[platform.machine()]
        # PyDLL keeps the interpreter's lock, since these calls do not block.
        self._call = ctypes.PyDLL(None, use_errno=True).syscall
        self._call.argtypes = [ctypes.c_long] * 6
        self._call.restype = ctypes.c_long
        context = ctypes.c_ulong(0)
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if self._call(setup, _PLACES, ctypes.addressof(context), 0, 0, 0) < 0:
            os.close(self._null)
            code = ctypes.get_errno()
            raise OSError(code, f"io_setup: {os.strerror(code)} (see fs.aio-max-nr)")
        self._context = context.value
        self._request = _Iocb(opcode=_PREAD, fd=self._null, flags=_FLAG_RESFD)
        self._requests = (ctypes.c_void_p * 1)(ctypes.addressof(self._request))
        self._events = ctypes.create_string_buffer(_EVENT_SIZE * _PLACES)
        self._no_time = (ctypes.c_long * 2)(0, 0)
        self._arguments = (self._submit, self._context, 1, ctypes.addressof(self._requests), 0, 0)

    def raise_eventfd(self, fd: int) -> None:
        """Add 1 to an eventfd if its counter has room. Raise OSError if it is not an eventfd."""
        self._request.eventfd = fd
        if self._call(*self._arguments) == 1:
            return
        code = ctypes.get_errno()
        if code == errno.EAGAIN:
            events, no_time = ctypes.addressof(self._events), ctypes.addressof(self._no_time)
            self._call(self._getevents, self._context, 0, _PLACES, events, no_time)
            if self._call(*self._arguments) == 1:
                return
            code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


_COUNTER: Final = (bytearray(8),)


def empty_eventfd(fd: int) -> None:
    """Set an eventfd's counter to 0."""
    with suppress(BlockingIOError):
        os.preadv(fd, _COUNTER, -1, os.RWF_NOWAIT)


def is_semaphore(fd: int) -> bool:
    """True if a descriptor is an eventfd whose reads subtract 1, as far as the kernel tells.

    Linux does so since 6.5 (proc(5), fdinfo).
    """
    return "eventfd-semaphore: 1" in Path(f"/proc/self/fdinfo/{fd}").read_text()


@cache
def raiser() -> Raiser:
    """Return the raiser of this process. Raise OSError like `Raiser`."""
    return Raiser()
