"""The guest end as a vhost-user front-end: of back-ends that can less, and of wrong ones."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, field

from tests.support.waiting import until
from tests.unit.ends.test_vhost_user_ends import resources
from vconfs.device import _remote_backend as vhost_user_backend
from vconfs.device.vhost_user import open_vhost_user
from vconfs.errors import VconfsError
from vconfs.guest.driver import Driver, drive
from vconfs.guest.ports import PortManager
from vconfs.link.vhost_user_messages import MessageSocket
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.vhost_user import Message, Request
from vconfs.system.aside import close_descriptors
from vconfs.system.tasks import open_background

V8 = 1 << 32 | 1 << 1 | 1 << 0
ALL = vu.PF_MQ | vu.PF_REPLY_ACK | vu.PF_BACKEND_REQ | vu.PF_CONFIG | vu.PF_CONFIGURE_MEM_SLOTS
CONFIG = struct.pack("<HHI", 80, 25, 1)


def message(request: int, payload: bytes = b"", flags: int = 5) -> bytes:
    return struct.pack("=III", request, flags, len(payload)) + payload


@define
class FakeBackEnd:
    """Follows the protocol, but for one request, and serves no rings."""

    features: int = V8
    protocol_features: int = ALL
    queues: int = 2
    config: bytes = CONFIG
    #: Instead of an answer to this request: these bytes, or the end of the connection.
    at: Request | None = None
    says: bytes | None = None
    #: Seconds until the first answer.
    delay: float = 0.0
    heard: list[Request] = field(factory=list)
    rings: dict[int, vu.RingSetup] = field(factory=dict)
    channel: int | None = None
    sock: trio.socket.SocketType | None = None

    async def serve(self, path: Path, task_status: trio.TaskStatus[None]) -> None:
        with trio.socket.socket(socket.AF_UNIX) as listener:
            await listener.bind(str(path))
            listener.listen()
            task_status.started()
            self.sock, _ = await listener.accept()
            protocol = vu.Backend(
                features=self.features,
                protocol_features=self.protocol_features,
                queues=self.queues,
                read_config=lambda: self.config,
            )
            try:
                with self.sock:
                    await self._serve(protocol, MessageSocket(self.sock))
            finally:
                close_descriptors(protocol.release())
                close_descriptors([self.channel] if self.channel is not None else [])

    async def _serve(self, protocol: vu.Backend, messages: MessageSocket) -> None:
        assert self.sock is not None
        while (got := await messages.receive()) is not None:
            self.heard.append(Request(got.request))
            reply = self._handle(protocol, got)
            if got.request == Request.GET_FEATURES:
                await trio.sleep(self.delay)
            if got.request == self.at:
                if self.says is None:
                    return
                reply = self.says
            if reply:
                await messages.send(reply)

    def _handle(self, protocol: vu.Backend, got: Message) -> bytes:
        handled = protocol.receive(got)
        reply = handled.reply
        for event in handled.events:
            match event:
                case vu.MemoryTableSet():
                    close_descriptors(event.fds)
                case vu.MemoryRegionAdded():
                    os.close(event.fd)
                case vu.ChannelSet():
                    self.channel = event.fd
                case vu.RingStarted():
                    self.rings[event.index] = event.setup
                case vu.RingStopped() if event.answer:
                    reply = protocol.ring_stopped(event.index, 0)
        close_descriptors(handled.close)
        return reply


@asynccontextmanager
async def joined(
    path: Path, fake: FakeBackEnd, dialect: str | None = None
) -> AsyncIterator[tuple[Driver, PortManager]]:
    manager = PortManager()
    with trio.fail_after(10):
        async with open_background() as nursery:
            await nursery.start(fake.serve, path)
            async with drive(manager, open_vhost_user(str(path), dialect)) as driver:
                yield driver, manager


SETUP = [Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR]
NOTIFIERS = [Request.SET_VRING_CALL, Request.SET_VRING_ERR, Request.SET_VRING_KICK]
ENABLE, STOP = Request.SET_VRING_ENABLE, Request.GET_VRING_BASE


async def test_what_is_asked_in_which_order(tmp_path: Path) -> None:
    fake = FakeBackEnd()
    async with joined(tmp_path / "s", fake) as (driver, manager):
        assert list(manager.ports) == [0]
        assert driver.tells_all_ports
    assert fake.heard == [
        Request.SET_OWNER,
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.SET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.SET_FEATURES,
        Request.GET_CONFIG,
        Request.SET_BACKEND_REQ_FD,
        Request.GET_MAX_MEM_SLOTS,
        Request.ADD_MEM_REG,
        *2 * [*SETUP, *NOTIFIERS, ENABLE],
        STOP,
        STOP,
    ]


async def test_a_back_end_that_reads_may_answer_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_user_backend, "_FIRST_PATIENCE", 0.05)
    async with joined(tmp_path / "s", FakeBackEnd(delay=0.1)) as (_, manager):
        assert list(manager.ports) == [0]


async def test_a_back_end_without_protocol_features(tmp_path: Path) -> None:
    """It cannot tell its config space, so there is one port, a console."""
    fake = FakeBackEnd(protocol_features=0)
    async with joined(tmp_path / "s", fake) as (driver, manager):
        assert (driver._link.features, manager.ports[0].console) == (1 << 32, True)
    assert fake.heard == [
        Request.SET_OWNER,
        Request.GET_FEATURES,
        Request.SET_FEATURES,
        Request.SET_MEM_TABLE,
        *2 * [*SETUP, *NOTIFIERS],
        STOP,
        STOP,
    ]


async def test_the_dialect_depends_on_the_number_of_queues_or_is_chosen(tmp_path: Path) -> None:
    config = struct.pack("<HHII", 80, 25, 3, 0)
    for queues, dialect, throttles in ((8, None, False), (8, "v8", True), (2, None, True)):
        fake = FakeBackEnd(queues=queues, config=config)
        async with joined(tmp_path / f"{queues}{dialect}", fake, dialect) as (driver, _):
            assert driver.throttles is throttles
            assert fake.heard.count(ENABLE) == (2 if throttles else 8)


#: (what is wrong with the back-end, what the user is told)
WRONG: list[tuple[FakeBackEnd, str]] = [
    (FakeBackEnd(at=Request.GET_FEATURES), "the back-end has left"),
    (FakeBackEnd(at=Request.SET_VRING_KICK), "the back-end has left"),
    (FakeBackEnd(at=Request.GET_FEATURES, says=b"no"), "no answer in 0 seconds"),
    (FakeBackEnd(at=Request.GET_CONFIG, says=b""), "gave no answer in 0 seconds"),
    (FakeBackEnd(at=Request.GET_FEATURES, says=b"HTTP/1.1 400 No"), "version 3 in flags"),
    (FakeBackEnd(at=Request.GET_FEATURES, says=message(1, bytes(4))), "payload of 4 bytes, not 8"),
    (FakeBackEnd(at=Request.GET_FEATURES, says=message(2, bytes(8))), "SET_FEATURES answers GET_F"),
    (
        FakeBackEnd(at=Request.GET_FEATURES, says=message(1, bytes(8), 1)),
        "is not a reply to any request",
    ),
    (FakeBackEnd(at=Request.SET_VRING_NUM, says=message(8, b"\1" + bytes(7))), "refused SET_VRING"),
    (FakeBackEnd(at=Request.GET_CONFIG, says=message(24)), "refused GET_CONFIG"),
    (FakeBackEnd(at=Request.GET_MAX_MEM_SLOTS, says=message(36, bytes(8))), "no room for a memor"),
    (
        FakeBackEnd(queues=7, config=struct.pack("<HHI", 0, 0, 3)),
        "the back-end has 7 queues of the 8 needed",
    ),
    (
        FakeBackEnd(queues=256, config=struct.pack("<HHI", 0, 0, 128)),
        "the back-end has 256 queues of the 258 needed",
    ),
]


@pytest.mark.parametrize(("fake", "reason"), WRONG, ids=[reason for _, reason in WRONG])
async def test_a_wrong_back_end_is_refused_with_a_reason(
    tmp_path: Path, fake: FakeBackEnd, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_user_backend, "_PATIENCE", 0.1)
    before = resources()
    with pytest.raises(VconfsError, match=reason):
        async with joined(tmp_path / "s", fake):
            pass
    await until(lambda: resources() == before)  # threads close what could take long


async def test_no_listener(tmp_path: Path) -> None:
    with pytest.raises(VconfsError, match=r"cannot connect to .*/s: No such file or directory"):
        async with drive(PortManager(), open_vhost_user(f"{tmp_path}/s", None)):
            pass


#: (what the back-end says on its channel, why it is lost)
ON_THE_CHANNEL = [
    (message(2, b"", flags=9), ""),
    (message(4, struct.pack("=II", 0, 0), flags=1), ""),
    (message(99, b"what?", flags=9), ""),
    (message(2, b"more", flags=1), "CONFIG_CHANGE_MSG with a payload of 4 bytes, not 0"),
    (message(2, b"", flags=5), "CONFIG_CHANGE_MSG on the channel has the flag of a reply"),
    (message(2, b"", flags=3), "version 3 in flags 0x3"),
]


@pytest.mark.parametrize(("said", "reason"), ON_THE_CHANNEL)
@pytest.mark.expect_log("device lost", "guest lost")
async def test_what_comes_on_the_channel(tmp_path: Path, said: bytes, reason: str) -> None:
    fake = FakeBackEnd()
    async with joined(tmp_path / "s", fake) as (driver, manager):
        fake.config = struct.pack("<HHI", 80, 25, 3)
        assert fake.channel is not None
        os.write(fake.channel, said)
        if reason:
            await driver.stopped.wait()
        else:
            os.write(fake.channel, message(2, b"", flags=1))
            await until(lambda: len(manager.ports) == 3)
        assert driver.reason == reason


async def test_the_answer_comes_before_the_config_is_read(tmp_path: Path) -> None:
    """A back-end that waits for it may serve nothing else meanwhile."""
    fake = FakeBackEnd()
    async with joined(tmp_path / "s", fake) as (_, manager):
        fake.config = struct.pack("<HHI", 80, 25, 2)
        assert fake.channel is not None
        os.write(fake.channel, message(2, b"", flags=9))
        os.set_blocking(fake.channel, False)
        await trio.lowlevel.wait_readable(fake.channel)
        assert os.read(fake.channel, 100) == message(2, bytes(8))
        assert len(manager.ports) == 1
        await until(lambda: len(manager.ports) == 2)


@pytest.mark.expect_log("device lost")
async def test_a_back_end_that_breaks_a_ring_is_lost(tmp_path: Path) -> None:
    fake = FakeBackEnd()
    async with joined(tmp_path / "s", fake) as (driver, manager):
        driver._link._rings[0]._used[1] = 99  # type: ignore[attr-defined]
        os.eventfd_write(fake.rings[0].call_fd or -1, 1)
        await driver.stopped.wait()
        assert driver.reason.startswith("queue 0: used.idx jumped from 0 to 99")
        assert not manager.ports[0].attached


@pytest.mark.expect_log("device lost")
async def test_a_back_end_that_says_that_it_cannot_go_on_is_lost(tmp_path: Path) -> None:
    fake = FakeBackEnd()
    async with joined(tmp_path / "s", fake) as (driver, _):
        os.eventfd_write(fake.rings[1].err_fd or -1, 1)
        await driver.stopped.wait()
        assert driver.reason == "the back-end cannot go on"
