"""Peers that follow the protocol and break one thing at a time, against daemons.

Each peer has an honest port 0, whose bytes it sends and gets back; only other ports get wrong
buffers.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vconfs.protocol import stream, v8
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.stream import BYE, CONFIG, CREDIT, HEADER, Connection, Role
from vconfs.protocol.virtqueue import DeviceQueue, DriverQueue, GuestMemory, Layout

from .hostile import GUEST, LIMIT, USER, RawFrontEnd

_IDS = [0, 1, 2, 1 << 31, (1 << 32) - 1]
_SIZES = [0, 1, 3, 11, 12, 16, 100, 4096, 70000]
_NUMBERS = [0, 1, 2, 7, 8, 255, 65535, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]
#: Features of v8, and VIRTIO_F_VERSION_1.
_FEATURES = v8.FEATURES | 1 << 32


class Gone(Exception):
    """The daemon has ended the connection."""


#: What shows that a connection has ended: our own end notices what we have broken, too.
ENDINGS = (Gone, OSError, RemoteProtocolError)


def data(port_id: int, payload: bytes) -> bytes:
    return v8.HEADER.pack(port_id, 0, len(payload)) + payload


def control(port_id: int, event: v8.ControlEvent) -> bytes:
    return v8.HEADER.pack(port_id, v8.INTERNAL, 4) + v8.CONTROL.pack(event, 1)


def wrong_buffer(numbers: random.Random) -> bytes:
    """A buffer of v8 that is wrong in one thing. It leaves port 0 alone."""
    port_id = numbers.choice(_IDS[1:])
    rest = numbers.randbytes(numbers.choice([0, 0, 1, 4, 300]))
    event = v8.CONTROL.pack(numbers.randrange(12), numbers.choice([0, 1, 2, 65535]))
    match numbers.randrange(5):
        case 0:
            return numbers.randbytes(numbers.choice([0, 1, 11]))  # too short
        case 1:
            size = numbers.choice(_NUMBERS[:9])  # not that of the payload
            return v8.HEADER.pack(port_id, 0, size) + rest
        case 2:
            flags = numbers.choice(_NUMBERS[2:9])
            return v8.HEADER.pack(port_id, flags, len(rest)) + rest
        case 3:
            return v8.HEADER.pack(port_id, v8.INTERNAL, 4) + event[: numbers.randrange(4)]
    return v8.HEADER.pack(port_id, v8.INTERNAL, 4 + len(rest)) + event + rest


class Peer(ABC):
    """One connection to a daemon."""

    #: How often it breaks what should not end the connection: a mount pauses before the next one.
    gentle = 0.2

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(LIMIT)
        self.came = b""  # on port 0

    @abstractmethod
    def send(self, payload: bytes) -> None:
        """Send bytes on port 0."""

    @abstractmethod
    def pump(self, seconds: float) -> None:
        """Handle what comes within this time; return after something came. Raise Gone."""

    def break_one(self, numbers: random.Random) -> bool:
        """Break one thing; return False if the connection cannot be used after it."""
        if numbers.random() > self.gentle:
            return self.break_harder(numbers)
        for _ in range(numbers.choice([1, 1, 1, 100, 1000])):
            self.put_raw(wrong_buffer(numbers))
        return True

    @abstractmethod
    def put_raw(self, payload: bytes) -> None:
        """Send a buffer of v8 as it is."""

    @abstractmethod
    def break_harder(self, numbers: random.Random) -> bool:
        """Break one thing of what carries the buffers."""

    def close(self) -> None:
        self.sock.close()

    def buffer(self, payload: bytes) -> None:
        """Handle a buffer of v8 that the daemon has sent."""
        port_id, is_control = v8.addressee(payload)
        if port_id == 0 and not is_control:
            self.came += payload[v8.HEADER.size :]

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, "nothing comes"
            self.pump(0.01)

    def settle(self) -> bool:
        """Handle what comes now; return True if the connection goes on."""
        end = time.monotonic() + 0.01
        try:
            while time.monotonic() < end:
                self.pump(0.005)
        except ENDINGS:
            return False
        return True


# --- over a stream ------------------------------------------------------------------------


class StreamPeer(Peer):
    """An end of a stream."""

    def __init__(self, sock: socket.socket, role: Role) -> None:
        super().__init__(sock)
        self.gentle = 0.9 if role is Role.HOST else 0.2
        self.queue = v8.INPUT if role is Role.HOST else v8.OUTPUT
        self._connection = Connection(role)
        config = v8.CONFIG.pack(80, 25, 2) if role is Role.HOST else b""
        self._heard = False
        sock.sendall(self._connection.hello(v8.FEATURES, config))
        self.until(lambda: self._heard)
        for port_id in range(2):
            if role is Role.GUEST:
                self._frame(control(port_id, v8.ControlEvent.PORT_NAME))
            self._frame(control(port_id, v8.ControlEvent.PORT_OPEN))

    def _frame(self, payload: bytes) -> None:
        head = self._connection.frame_header(self.queue, len(payload))
        self.sock.sendall(head + payload)

    def send(self, payload: bytes) -> None:
        self._frame(data(0, payload))

    def pump(self, seconds: float) -> None:
        if not select.select([self.sock], [], [], seconds)[0]:
            return
        if not (got := self.sock.recv(1 << 16)):
            raise Gone
        self._connection.feed(got)
        while (event := self._connection.next_event()) is not None:
            match event:
                case stream.Hello():
                    self._heard = True
                    self.sock.sendall(self._connection.answer())
                case stream.Frame():
                    self.buffer(bytes(event.payload))
                    size, watched = len(event.payload), event.watched
                    self._connection.acknowledge(size, watched=watched)
                    self.sock.sendall(self._connection.credit())
                case stream.Closed():
                    raise Gone

    def put_raw(self, payload: bytes) -> None:
        self.sock.sendall(HEADER.pack(len(payload), self.queue) + payload)

    def break_harder(self, numbers: random.Random) -> bool:
        rest = numbers.randbytes(numbers.choice(_SIZES))
        match numbers.randrange(7):
            case 0:  # a queue that is not ours, or none
                queue = numbers.choice([1 - self.queue, 7, 17, 128, 255])
                self.sock.sendall(HEADER.pack(len(rest), queue) + rest)
            case 1:  # a frame that is too long, or never ends
                self.sock.sendall(HEADER.pack(numbers.choice(_NUMBERS[4:9]), self.queue) + rest)
                return False
            case 2:  # credit for what was never sent
                credit = struct.pack("<II", *numbers.choices(_NUMBERS[1:9], k=2))
                self.sock.sendall(HEADER.pack(8, CREDIT) + credit)
            case 3:  # a config space of a wrong size, or with other ports
                ports = numbers.choice([0, 1, 3, 500, v8.PORTS_MAX + 1, (1 << 32) - 1])
                config = v8.CONFIG.pack(0, 0, ports) + rest[: numbers.choice([0, 0, 1])]
                self.sock.sendall(HEADER.pack(len(config), CONFIG) + config)
            case 4:  # a reason that is no text, or too long
                self.sock.sendall(HEADER.pack(len(rest), BYE) + rest)
            case 5:  # a hello where a frame should be
                self.sock.sendall(Connection(numbers.choice(list(Role))).hello(v8.FEATURES))
            case _:  # a frame that is cut
                frame = HEADER.pack(100, self.queue) + bytes(100)
                self.sock.sendall(frame[: numbers.randrange(1, len(frame))])
                return False
        return True


# --- over vhost-user ----------------------------------------------------------------------

RING, SLOT = 16, 4096
_AT = [Layout.at(RING, 0), Layout.at(RING, 1 << 14)]


def break_ring(numbers: random.Random, memory: memoryview, layout: Layout) -> None:
    """Make one field of the driver's part of a ring wrong."""
    wrong = numbers.choice(_NUMBERS)
    if numbers.randrange(2):
        where = numbers.choice([2, *range(4, 4 + 2 * RING, 2)])
        struct.pack_into("<H", memory, layout.avail + where, wrong & 0xFFFF)
    else:
        where, kind = numbers.choice([(0, "<Q"), (8, "<I"), (12, "<H"), (14, "<H")])
        value = wrong & ((1 << 8 * struct.calcsize(kind)) - 1)
        struct.pack_into(kind, memory, layout.desc + 16 * numbers.randrange(RING) + where, value)


class FrontEndPeer(Peer):
    """A vhost-user front-end with the guest's driver."""

    def __init__(self, folder: Path) -> None:
        self._front = RawFrontEnd(folder)
        super().__init__(self._front.sock)
        front = self._front
        self._memory = memoryview(front.memory)
        self._rings = [DriverQueue(self._memory, layout, base=GUEST) for layout in _AT]
        self._slots: list[dict[int, int]] = [{}, {}]  # head -> address
        front.negotiate()
        front.share()
        for slot in range(RING):
            self._offer(0, (1 << 16) + slot * SLOT, SLOT)
        self._rings[0].publish()
        for index, at in enumerate(_AT):
            front.start(index, RING, at.desc, at.avail, at.used)
        for port_id in range(2):
            self._put(control(port_id, v8.ControlEvent.PORT_NAME))
            self._put(control(port_id, v8.ControlEvent.PORT_OPEN))

    def close(self) -> None:
        self._rings.clear()
        self._memory.release()
        self._front.close()

    def _offer(self, queue: int, at: int, size: int) -> None:
        self._slots[queue][self._rings[queue].add(at, size, writable=not queue)] = at

    def _put(self, payload: bytes) -> None:
        self.until(lambda: self._rings[1].free)
        free = set(range(1 << 17, (1 << 17) + RING * SLOT, SLOT)) - {*self._slots[1].values()}
        at = min(free)
        payload = payload[:SLOT]
        self._memory[at : at + len(payload)] = payload
        self._offer(1, at, len(payload))
        self._rings[1].publish()
        os.eventfd_write(self._front.kicks[1], 1)

    def send(self, payload: bytes) -> None:
        self._put(data(0, payload))

    def pump(self, seconds: float) -> None:
        watched: list[socket.socket | int] = [self.sock, *self._front.calls]
        for fd in select.select(watched, [], [], seconds)[0]:
            if not isinstance(fd, int):
                if not self.sock.recv(4096):
                    raise Gone
            else:
                os.read(fd, 8)
        for queue, ring in enumerate(self._rings):
            while (used := ring.pop_used()) is not None:
                at = self._slots[queue].pop(used[0])
                if not queue:
                    self.buffer(bytes(self._memory[at : at + used[1]]))
                    self._offer(0, at, SLOT)
            if not queue and ring.publish():
                os.eventfd_write(self._front.kicks[0], 1)

    def put_raw(self, payload: bytes) -> None:
        self._put(payload)

    def break_harder(self, numbers: random.Random) -> bool:
        front = self._front
        match numbers.randrange(6):
            case 0:  # a request with any payload
                size = numbers.choice([0, 1, 8, 8, 16, 40, 300, 4097])
                flags = numbers.choice([1, 1, 9, 0, 3, 5])
                header = struct.pack("=III", numbers.randrange(45), flags, size)
                self.sock.sendall(header + numbers.randbytes(size))
            case 1:  # a number of a ring, or about one, that cannot be
                request = numbers.choice([8, 10, 11, 18])
                front.say(request, struct.pack("=II", *numbers.choices(_NUMBERS[:9], k=2)))
            case 2:  # a ring outside of the memory, or not aligned
                where = numbers.choices([USER, USER + 1, USER + front.size - 2, *_NUMBERS], k=3)
                front.say(9, struct.pack("=IIQQQQ", numbers.randrange(3), 0, *where, 0))
            case 3:  # memory that is not there, or too much of it
                size, offset = numbers.choices([0, 4096, front.size, *_NUMBERS], k=2)
                region = struct.pack("=QQQQ", GUEST, size, USER, offset)
                front.say(
                    5, struct.pack("=II", numbers.choice([0, 1, 2, 9]), 0) + region, [front.memfd]
                )
            case 4:  # a descriptor too few, too many or of a wrong kind
                fds = numbers.choice([[], [front.memfd], front.calls, [0]])
                front.say(numbers.choice([5, 12, 13, 14, 21, 37]), struct.pack("=Q", 1), fds)
            case _:  # a ring
                index = numbers.randrange(2)
                break_ring(numbers, self._memory, _AT[index])
                os.eventfd_write(front.kicks[index], 1)
        return False


class BackEndPeer(Peer):
    """A vhost-user back-end with the host's device."""

    gentle = 0.9

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._ports = 2
        self._parser = vu.Parser()
        self._protocol = vu.Backend(
            features=_FEATURES,
            protocol_features=vu.PF_MQ | vu.PF_REPLY_ACK | vu.PF_BACKEND_REQ | vu.PF_CONFIG,
            queues=2,
            read_config=lambda: v8.CONFIG.pack(80, 25, self._ports),
        )
        self._maps: list[mmap.mmap] = []
        self._guest: GuestMemory | None = None
        self._rings: dict[int, tuple[DeviceQueue, vu.RingSetup]] = {}
        self._channel: int | None = None
        self._answer: bytes | None = None  # instead of the next answer
        self.until(lambda: len(self._rings) == 2)
        for port_id in range(2):
            self._put(control(port_id, v8.ControlEvent.PORT_OPEN))

    def close(self) -> None:
        self._rings.clear()
        for fd in self._protocol.release():
            os.close(fd)
        if self._channel is not None:
            os.close(self._channel)
        super().close()

    def pump(self, seconds: float) -> None:
        kicks = [setup.kick_fd for _, setup in self._rings.values() if setup.kick_fd is not None]
        watched: list[socket.socket | int] = [self.sock, *kicks]
        for fd in select.select(watched, [], [], seconds)[0]:
            if not isinstance(fd, int):
                self._receive()
            else:
                os.read(fd, 8)
        if 1 in self._rings:
            ring = self._rings[1][0]
            while (chain := ring.pop()) is not None:
                payload = b"".join(chain.readable)
                ring.push(chain.head, 0)
                self.buffer(payload)
            if ring.publish():
                self._call(1)

    def _receive(self) -> None:
        got, fds, _, _ = socket.recv_fds(self.sock, self._parser.wanted, 16)
        if not got:
            raise Gone
        self._parser.feed(got, fds)
        while (message := self._parser.next_message()) is not None:
            handled = self._protocol.receive(message)
            reply = handled.reply
            for event in handled.events:
                reply = self._handle(event) or reply
            for fd in handled.close:
                os.close(fd)
            if reply:
                reply, self._answer = self._answer or reply, None
                self.sock.sendall(reply)

    def _handle(self, event: object) -> bytes:
        match event:
            case vu.MemoryTableSet():
                regions = []
                for region, fd in zip(event.regions, event.fds, strict=True):
                    self._maps.append(mmap.mmap(fd, region.size, offset=region.mmap_offset))
                    regions.append((region.guest_addr, memoryview(self._maps[-1])))
                    os.close(fd)
                self._guest = GuestMemory(regions)
            case vu.ChannelSet():
                self._channel = event.fd
            case vu.RingStarted():
                assert self._guest is not None
                queue = DeviceQueue(self._guest, event.setup.layout)
                self._rings[event.index] = queue, event.setup
            case vu.RingStopped():
                self._rings.pop(event.index, None)
                return self._protocol.ring_stopped(event.index, 0) if event.answer else b""
        return b""

    def _call(self, index: int) -> None:
        call = self._rings[index][1].call_fd
        if call is not None:
            os.eventfd_write(call, 1)

    def _put(self, payload: bytes) -> None:
        self.until(lambda: 0 in self._rings and self._rings[0][0].has_available())
        ring = self._rings[0][0]
        chain = ring.pop()
        assert chain is not None
        size = min(len(payload), chain.writable_length)
        done = 0
        for part in chain.writable:
            step = min(len(part), size - done)
            part[:step] = payload[done : done + step]
            done += step
        ring.push(chain.head, size)
        ring.publish()
        self._call(0)

    def send(self, payload: bytes) -> None:
        self._put(data(0, payload))

    def put_raw(self, payload: bytes) -> None:
        self._put(payload)

    def break_harder(self, numbers: random.Random) -> bool:
        rest = numbers.randbytes(numbers.choice(_SIZES[:7]))
        match numbers.randrange(4):
            case 0:  # a message on the channel that is wrong, or an answer that was not asked for
                header = struct.pack("=III", numbers.randrange(8), numbers.choice([1, 3, 5, 9]), 8)
                wrong = header + numbers.randbytes(numbers.choice([0, 8]))
                if self._channel is not None and numbers.randrange(2):
                    with suppress(BrokenPipeError):
                        os.write(self._channel, wrong)
                else:
                    self.sock.sendall(wrong)
            case 1:  # a wrong answer
                self._answer = struct.pack("=III", 24, 5, len(rest)) + rest
                self._change_config(numbers.choice([0, 3, 500]))
            case 2:  # other numbers of ports
                self._change_config(numbers.choice([0, 1, 3, 500, v8.PORTS_MAX + 1, 1 << 31]))
                self.settle()
            case _:  # a ring
                assert self._guest is not None
                index = numbers.choice(list(self._rings))
                layout = self._rings[index][1].layout
                view = self._guest.view(layout.used, 4 + 8 * layout.size)
                at = numbers.choice([0, 2, *range(4, 4 + 8 * RING, 4)])
                struct.pack_into("<H", view, at, numbers.choice(_NUMBERS) & 0xFFFF)
                self._call(index)
        return False

    def _change_config(self, ports: int) -> None:
        self._ports = ports
        if self._channel is not None:
            os.write(self._channel, struct.pack("=III", 2, 1, 0))
