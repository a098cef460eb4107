"""Doorbells: eventfds that the MSI-X messages of a device inside a QEMU process raise.

An `ivshmem-doorbell` device of the machine has a register that rings the doorbell of another peer.
A server tells QEMU and us each other's doorbells (see protocol/ivshmem.py). An MSI-X message is a
write to memory, so a message to that register rings one of our doorbells, without a line of qtest.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import trio
from attrs import frozen

from vconfs.device.qtest._bus import QtestBus, QtestFunction
from vconfs.device.qtest._qtest_client import connect
from vconfs.errors import VconfsError
from vconfs.link.notifications import Notices, Told
from vconfs.protocol import ivshmem, qtest, virtio_pci
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.system.aside import close_descriptors, is_eventfd
from vconfs.system.descriptors import owned

#: The device id of ivshmem; its registers are in BAR 0.
_IVSHMEM: Final = 0x1110
_REGISTERS: Final = 0
_DOORBELL: Final = 12
#: The most descriptors that Linux allows in a message; there should be one.
_RIGHTS_MAX: Final = 253
#: The key, in place of a vector, that means that QEMU is gone.
_LOST: Final = -1

#: Seconds that the server, and then QEMU, may take, and seconds between tries of the doorbells.
_SECONDS: Final = 5.0
_STEP: Final = 0.01


@frozen
class Doorbells:
    """Our doorbells: the address that rings them, and the value for each."""

    register: int
    values: list[int]
    rung: Told[int]


async def open_doorbells(
    bus: QtestBus, path: Path, most: int, nursery: trio.Nursery, stack: ExitStack
) -> Doorbells | None:
    """Get up to `most` doorbells from the server at `path`, or None if the machine can ring none.

    `nursery` listens to them, and `stack` closes them. Raise VconfsError if the server or QEMU does
    not do its part.
    """
    slot = await bus.find(_IVSHMEM)
    if slot is None:
        return None
    function = QtestFunction(bus, slot)
    msix = virtio_pci.find_msix(await function.read_whole_config())
    count = min(most, msix.vectors if msix else 0)
    await function.bar_sizes()
    sock = stack.enter_context(connect(path, rights=True))
    peer = await _meet(sock, count)
    rung: Told[int] = Told()
    events = Notices(rung.add)
    for vector, event in enumerate(peer.doorbells):
        events.add(stack.enter_context(owned(event)), vector)
    values = [peer.ring(vector) for vector in range(count)]
    doorbells = Doorbells(function.address(_REGISTERS, _DOORBELL), values, rung)
    nursery.start_soon(events.run)
    await _try_all(bus, doorbells)
    bus.client.on_lost = lambda: rung.add(_LOST)
    return doorbells


async def _meet(sock: socket.socket, count: int) -> ivshmem.Peer:
    """Receive from the server until `count` doorbells have come."""
    peer = ivshmem.Peer()
    with ExitStack() as stack:
        stack.callback(close_descriptors, peer.doorbells)
        try:
            with trio.fail_after(_SECONDS):
                while len(peer.doorbells) < count:
                    await trio.lowlevel.wait_readable(sock)
                    _receive(sock, peer)
        except trio.TooSlowError:
            raise _failed(f"it has not sent {count} doorbells in {_SECONDS:g} s") from None
        except (OSError, RemoteProtocolError) as error:
            raise _failed(str(error)) from None
        stack.pop_all()
    return peer


def _failed(reason: str) -> VconfsError:
    return VconfsError(f"the server of doorbells: {reason}")


def _receive(sock: socket.socket, peer: ivshmem.Peer) -> None:
    size, flags = ivshmem.MESSAGE.size, socket.MSG_CMSG_CLOEXEC
    message, descriptors, _, _ = socket.recv_fds(sock, size, _RIGHTS_MAX, flags)
    keeps = False
    try:
        if len(message) != size:
            raise RemoteProtocolError("it has left")
        keeps = peer.receive(message, descriptors[0] if descriptors else None)
    finally:
        close_descriptors(descriptors[1:] if keeps else descriptors)
    if keeps and not is_eventfd(descriptors[0]):
        raise RemoteProtocolError("a doorbell is not an eventfd")


async def _try_all(bus: QtestBus, doorbells: Doorbells) -> None:
    """Ring all doorbells until each has rung: the server tells QEMU about us at some later time."""
    silent = set(range(len(doorbells.values)))
    with trio.move_on_after(_SECONDS):
        while silent:
            for vector in silent:
                bus.client.post(qtest.write(doorbells.register, 4, doorbells.values[vector]))
            with trio.move_on_after(_STEP):
                silent.difference_update(await doorbells.rung.take())
            bus.client.check()
        return
    raise VconfsError(f"QEMU has not rung our doorbells in {_SECONDS:g} s")
