"""Wrong messages of a front-end, over the real socket: one error, and its exact outcome.

What the protocol's state machine makes of each message is tested in test_vhost_user.py. Here it
is seen that the socket, the descriptors and the mappings follow, and that the next front-end is
served.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import trio
import trio.testing
from attrs import frozen

from tests.support.waiting import until
from tests.unit.host.vhost_user.front_end import (
    GUEST,
    NEED_REPLY,
    REGION,
    SIZE,
    USER,
    FrontEnd,
    open_back_end,
    open_front_end,
)
from tests.unit.host.vhost_user.test_vhost_user_host import name_of
from vconfs.host.host import Host
from vconfs.host.port import HostPortSpec
from vconfs.protocol.vhost_user import Region, Request
from vconfs.testing import Puppet


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def state(index: int, num: int) -> bytes:
    return struct.pack("=II", index, num)


def table(*regions: Region) -> bytes:
    return state(len(regions), 0) + b"".join(region.pack() for region in regions)


def address(index: int, desc: int = USER, used: int = USER + 512, avail: int = USER + 256) -> bytes:
    return struct.pack("=IIQQQQ", index, 0, desc, used, avail, 0)


def config(offset: int, size: int, flags: int = 0) -> bytes:
    return struct.pack("=III", offset, size, flags) + bytes(size)


def resources() -> tuple[int, int]:
    """How many descriptors are open, and how much of guests' memory is mapped."""
    return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("guest")


# What comes of a message, where an answer is wanted and where not.
FAILED = ("failed", "failed")
REFUSED = ("refused", "failed")
SILENT = ("refused", "kept")
DONE = ("done", "kept")
EMPTY = ("empty", "empty")
#: It was taken, and its descriptors then turn out to be of no use.
TOO_LATE = ("failed", "failed")


@frozen
class Case:
    """A message that comes when the rings are running, the memory shared, the channel open."""

    name: str
    request: int
    payload: bytes
    outcome: tuple[str, str]
    #: Which descriptors go with it: see `Fds`.
    fds: Sequence[str] = ()
    why: str = ""
    flags: int = 1


NUM, BASE, ADDR = Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR
KICK, CALL, ERR = Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR
TABLE, ADD, REM = Request.SET_MEM_TABLE, Request.ADD_MEM_REG, Request.REM_MEM_REG
SECOND = Region(GUEST + SIZE, 4096, USER + SIZE)


def slot(region: Region) -> bytes:
    return u64(0) + region.pack()


CASES = [
    Case("version", Request.SET_OWNER, b"", FAILED, flags=2, why="version 2 in flags"),
    Case("reply", Request.SET_OWNER, b"", FAILED, flags=5, why="has the flag of a reply"),
    Case("large", Request.SET_CONFIG, bytes(4097), FAILED, why="4097 bytes is larger than 4096"),
    Case("size", NUM, state(1, 8)[:4], FAILED, why="payload of 4 bytes, not 8"),
    Case("size of nothing", Request.SET_OWNER, b"\0", FAILED, why="payload of 1 bytes, not 0"),
    Case("a descriptor", Request.SET_OWNER, b"", FAILED, ["memory"], "with 1 descriptors"),
    Case("9 descriptors", TABLE, table(REGION), FAILED, ["memory"] * 9, "9 descriptors in a"),
    Case("20 descriptors", TABLE, table(REGION), FAILED, ["memory"] * 20, "were lost on the way"),
    Case("no descriptor", TABLE, table(REGION), FAILED, [], "1 regions and 0 descriptors"),
    Case("2 for 1 region", TABLE, table(REGION), FAILED, ["memory"] * 2, "and 2 descriptors"),
    Case("no kick", KICK, u64(0), FAILED, [], "0 descriptors, not 1, for ring 0"),
    Case("a kick that is none", KICK, u64(0x100), FAILED, ["event"], "1 descriptors, not 0"),
    Case("overlap", TABLE, table(REGION, REGION), REFUSED, ["memory"] * 2, "overlaps another"),
    Case("empty", TABLE, table(Region(0, 0, 0)), REFUSED, ["memory"], "is empty"),
    Case("overlapping slot", ADD, slot(REGION), REFUSED, ["memory"], "overlaps another"),
    Case("another slot", ADD, slot(SECOND), DONE, ["memory"]),
    Case("no such slot", REM, slot(SECOND), REFUSED, [], "there is no region of 0x1000 bytes"),
    Case("the slot of the rings", REM, slot(REGION), DONE),
    Case("past the file", ADD, slot(SECOND), TOO_LATE, ["short"], "of a file of 0xfff"),
    Case("no file", ADD, slot(SECOND), TOO_LATE, ["pipe"], "is not in a file"),
    Case("a socket", ADD, slot(SECOND), TOO_LATE, ["socket"], "is not in a file"),
    Case("read-only memory", ADD, slot(SECOND), TOO_LATE, ["read-only"], "cannot be mapped: Perm"),
    Case("an ordinary file", ADD, slot(SECOND), TOO_LATE, ["file"], "is not in a file in memory"),
    Case("a file on tmpfs", ADD, slot(SECOND), DONE, ["tmpfs"]),
    Case("running ring", NUM, state(0, 8), REFUSED, why="ring 0 is running"),
    Case("queue 2 of 2", NUM, state(2, 8), REFUSED, why="ring 2 of 2"),
    Case("base of queue 2", Request.GET_VRING_BASE, state(2, 0), FAILED, why="ring 2 of 2"),
    Case("kick of queue 255", KICK, u64(255), REFUSED, ["event"], "ring 255 of 2"),
    Case("enable queue 9", Request.SET_VRING_ENABLE, state(9, 1), REFUSED, why="ring 9 of 2"),
    Case(
        "kicked by a file", KICK, u64(0), TOO_LATE, ["file"], "not an eventfd, pipe or unix socket"
    ),
    Case("calling a file", CALL, u64(0), TOO_LATE, ["file"], "not an eventfd, pipe or unix socket"),
    Case("kicked by a pipe", KICK, u64(0), DONE, ["pipe"]),
    Case("calling a socket", CALL, u64(0), DONE, ["socket"]),
    Case("another error", ERR, u64(1), DONE, ["event"]),
    Case("config past 256", Request.GET_CONFIG, config(250, 10), EMPTY, why="bytes 250 to 260"),
    Case("config is read-only", Request.SET_CONFIG, config(0, 2), SILENT, why="not writable"),
    Case("config size", Request.GET_CONFIG, config(0, 8)[:-1], FAILED, why="of 8 bytes with 7"),
    Case("features", Request.SET_FEATURES, u64(1 << 63), REFUSED, why="chosen but not offered"),
    Case("inband", Request.VRING_KICK, state(0, 0), SILENT, why="unknown VRING_KICK"),
    Case("status", Request.SET_STATUS, u64(0), SILENT, why="unknown SET_STATUS"),
    Case("unknown", 77, b"what?", SILENT, ["memory", "pipe"], "unknown request 77"),
    Case("channel", Request.SET_BACKEND_REQ_FD, b"", TOO_LATE, ["pipe"], "is not a unix socket"),
    Case("another channel", Request.SET_BACKEND_REQ_FD, b"", DONE, ["socket"]),
]


class Fds:
    """Descriptors of many kinds, for one test."""

    def __init__(self, stack: ExitStack, front: FrontEnd) -> None:
        self._stack = stack
        self._front = front

    def get(self, kind: str) -> int:
        if kind == "memory":
            return self._front.memfd
        fd = self._make(kind)
        self._stack.callback(os.close, fd)
        return fd

    def _make(self, kind: str) -> int:
        match kind:
            case "event":
                return os.eventfd(0, os.EFD_CLOEXEC)
            case "pipe":
                reader, writer = os.pipe()
                self._stack.callback(os.close, writer)
                return reader
            case "socket":
                ours, theirs = socket.socketpair()
                self._stack.enter_context(ours)
                return theirs.detach()
            case "short":
                fd = os.memfd_create("guest")
                os.ftruncate(fd, 4095)
                return fd
            case "read-only":
                return os.open(f"/proc/self/fd/{self._front.memfd}", os.O_RDONLY)
            case "tmpfs" | "file" as where:
                folder = "/dev/shm" if where == "tmpfs" else Path.home()
                with TemporaryFile(dir=folder) as file:
                    file.truncate(8192)
                    return os.dup(file.fileno())
        raise AssertionError(kind)


@pytest.mark.parametrize("need_reply", [True, False], ids=["need-reply", "no-reply"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_wrong_message_has_its_outcome_and_the_next_front_end_is_served(
    tmp_path: Path, case: Case, need_reply: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    async with open_back_end(path, [HostPortSpec(b"port", Puppet())]) as host:
        await serve_a_good_one(path, host)
        before = resources()
        with ExitStack() as stack:
            async with open_front_end(path) as front:
                await front.start()
                fds = Fds(stack, front)
                await front.say(
                    case.request,
                    case.payload,
                    [fds.get(kind) for kind in case.fds],
                    flags=case.flags | (NEED_REPLY if need_reply else 0),
                )
                assert await outcome(front) == case.outcome[not need_reply]
            await gone(host)
        await left(before)
        if case.why:
            assert case.why in caplog.text
        await serve_a_good_one(path, host)
        await left(before)


async def left(resources_before: tuple[int, int]) -> None:
    """Wait until nothing more is held than before: threads close what could take long."""
    await until(lambda: resources() == resources_before)


async def outcome(front: FrontEnd) -> str:
    """What came of the last message, told by what comes before the answer to a question."""
    with suppress(OSError):
        await front.say(Request.GET_FEATURES)
    answer = await front.reply()
    if answer is None:
        return "failed"
    if answer.request == Request.GET_FEATURES:
        return "kept"
    after = await front.reply()
    assert after is not None
    assert after.request == Request.GET_FEATURES
    if not answer.payload:
        return "empty"
    return {u64(0): "done", u64(1): "refused"}[answer.payload]


async def serve_a_good_one(path: Path, host: Host) -> None:
    async with open_front_end(path) as front:
        await front.start()
        assert await name_of(front, 0) == b"port"
    await gone(host)


async def gone(host: Host) -> None:
    """Wait until nothing is left of a front-end."""
    await until(lambda: host.guest is None)
    await trio.testing.wait_all_tasks_blocked()
