"""A host with thousands of ports: they come in helpings, and names are found at once."""

from __future__ import annotations

import json
import os
import random
import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from vconfs.files import _cut_links, _events_file
from vconfs.files._cut_links import CutLinks
from vconfs.files._events_file import EventsFile
from vconfs.files.announcer import Announcer
from vconfs.files.folder import Folder
from vconfs.files.names import link_name, named_by
from vconfs.files.open_files import OpenFiles
from vconfs.files.tree import Access
from vconfs.guest.driver import Driver
from vconfs.guest.opener import Opener
from vconfs.guest.options import PortOptions
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.link.link import Link
from vconfs.protocol import v8, virtio1
from vconfs.protocol.events import Buffer

COUNT = v8.PORTS_MAX // 4


class FakeLink(Link):
    """A link whose config space the test changes, and on which the test's buffers come."""

    features = v8.FEATURES
    in_flight = 0
    config = b""

    def __init__(self) -> None:
        self.buffers: list[bytes] = []

    def room_for(self, queue: int, header_size: int) -> int:
        return 1 << 20

    def find_buffer(self, queue: int, wanted: int) -> int:
        return 1 << 20

    def send(
        self,
        queue: int,
        header: bytes,
        data: Buffer,
        seen: Callable[[], None] | None = None,
        *,
        port_id: int | None = None,
    ) -> int:
        return len(data)

    def receive(self, queue: int) -> memoryview | None:
        return memoryview(self.buffers.pop(0)) if self.buffers else None

    def again(self, queue: int) -> None: ...
    def done(self, queue: int) -> None: ...
    def withhold(self, queue: int) -> None: ...
    def release(self, queue: int) -> None: ...
    def flush(self, queue: int) -> None: ...

    def set_ports(self, count: int) -> None:
        self.config = v8.CONFIG.pack(80, 25, count)
        self.owner.config_changed()


def open_driver(manager: PortManager) -> tuple[Driver, FakeLink]:
    link = FakeLink()
    link.config = v8.CONFIG.pack(80, 25, 1)
    driver = Driver(manager, link, v8.GuestEnd(link.features))
    driver.start()
    return driver, link


async def test_ports_come_in_portions_and_their_messages_wait() -> None:
    manager = PortManager()
    driver, link = open_driver(manager)
    link.set_ports(COUNT)
    seen = [len(manager.ports)]
    assert not driver.tells_all_ports
    name = v8.HostEnd(link.features).port_name(COUNT - 1, b"last")
    assert name is not None
    link.buffers.append(name.data)
    driver.received(v8.INPUT)
    while not driver.tells_all_ports:
        await trio.lowlevel.checkpoint()
        seen.append(len(manager.ports))
    assert seen[-1] == COUNT
    assert max(after - before for before, after in pairwise(seen)) <= 512
    assert manager.ports[COUNT - 1].name == b"last"
    assert manager.ignored == 0


async def test_of_many_changes_of_the_config_space_the_last_counts() -> None:
    manager = PortManager()
    driver, link = open_driver(manager)
    for count in (COUNT, 1, 5000, 2, 1000):
        link.set_ports(count)
    while not driver.tells_all_ports:
        await trio.lowlevel.checkpoint()
    assert sorted(manager.ports) == list(range(1000))


async def test_a_driver_that_stops_adds_no_more_ports() -> None:
    manager = PortManager()
    driver, link = open_driver(manager)
    link.set_ports(COUNT)
    driver.stop("lost")
    for _ in range(5):
        await trio.lowlevel.checkpoint()
    assert len(manager.ports) < 1000


async def test_ports_are_hung_up_in_portions() -> None:
    manager = PortManager()
    driver, link = open_driver(manager)
    link.set_ports(COUNT)
    while not driver.tells_all_ports:
        await trio.lowlevel.checkpoint()
    driver.stop("lost")
    attached = [COUNT]
    while not driver.detached.is_set():
        attached.append(sum(port.attached for port in manager.ports.values()))
        await trio.lowlevel.checkpoint()
    assert not any(port.attached for port in manager.ports.values())
    assert max(before - after for before, after in pairwise(attached)) <= 512


class OwnQueues(FakeLink):
    """A link of which each port has its own queue (virtio1)."""

    features = virtio1.FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[int, list[bytes]] = {}

    def receive(self, queue: int) -> memoryview | None:
        buffers = self.waiting.get(queue)
        return memoryview(buffers.pop(0)) if buffers else None


@pytest.mark.expect_log("device lost")
async def test_the_last_data_of_many_queues_is_taken_in_portions() -> None:
    """A device that is lost can leave all rings full: 511 MiB for 511 ports."""
    manager, link, count = PortManager(), OwnQueues(), 511
    link.config = bytes(4) + count.to_bytes(4, "little")
    driver = Driver(manager, link, virtio1.GuestEnd(link.features))
    driver.start()
    for port_id in range(count):
        port = manager.add(port_id)
        port.attach(driver)
        port.set_connected(True)
        queue = 2 * port_id + 2 if port_id else 0
        link.waiting[queue] = [b"last %d" % port_id]
    driver.lost("for this test")
    left = [count]
    while not driver.detached.is_set():
        left.append(sum(map(bool, link.waiting.values())))
        await trio.lowlevel.checkpoint()
    assert max(before - after for before, after in pairwise(left)) <= 64
    for port_id, port in manager.ports.items():
        assert b"".join(port.read_nowait(100)) == b"last %d" % port_id
        assert port.read_nowait(100) == []


async def test_missing_ports_are_removed_in_portions() -> None:
    manager = PortManager()
    for port_id in range(COUNT):
        manager.add(port_id)
    left = [COUNT]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.remove_detached)
        while manager.ports:
            await trio.lowlevel.checkpoint()
            left.append(len(manager.ports))
    assert max(before - after for before, after in pairwise(left)) <= 512


@asynccontextmanager
async def many_ports() -> AsyncIterator[tuple[PortManager, Driver, FakeLink]]:
    """Run a driver with COUNT ports."""
    manager = PortManager()
    driver, link = open_driver(manager)
    link.set_ports(COUNT)
    while not driver.tells_all_ports:
        await trio.lowlevel.checkpoint()
    try:
        yield manager, driver, link
    finally:
        driver.stop()
        with trio.CancelScope(shield=True):
            await driver.detached.wait()


async def count_meanwhile(act: Callable[[], Awaitable[None]], count: Callable[[], int]) -> int:
    """Run `act`; return the largest change of `count` between two turns of another task."""
    counts = [count()]
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        @nursery.start_soon
        async def acting() -> None:
            await act()
            ended.set()

        while not ended.is_set():
            await trio.lowlevel.checkpoint()
            counts.append(count())
    return max(abs(after - before) for before, after in pairwise(counts))


async def test_hosts_are_stopped_in_portions_when_the_mount_ends() -> None:
    async with many_ports() as (manager, driver, _):
        ports = manager.ports.values()
        step = await count_meanwhile(
            driver.begin_ending, lambda: sum(port.guest_throttled for port in ports)
        )
        assert step <= 512
        assert all(port.guest_throttled for port in ports)


async def test_all_ports_refuse_writes_from_the_begin_of_an_ending_on() -> None:
    """Also ports that the host adds later: only waking those that wait is done in portions."""
    async with many_ports() as (manager, driver, link), trio.open_nursery() as nursery:
        last = manager.ports[COUNT - 1]
        assert last.poll() & select.POLLOUT
        nursery.start_soon(driver.begin_ending)
        while not manager.ports[0].guest_throttled:
            await trio.lowlevel.checkpoint()
        assert not last.guest_throttled
        link.set_ports(COUNT + 1)
        for port in (last, manager.ports[COUNT]):
            assert not port.poll() & select.POLLOUT
            with pytest.raises(OSError, match="not connected"):
                port.write_nowait(b"late")
        assert manager.ports[COUNT].guest_throttled


async def test_ports_are_shut_in_portions() -> None:
    async with many_ports() as (manager, _, _):
        ports = manager.ports.values()
        step = await count_meanwhile(manager.shut, lambda: sum(port.attached for port in ports))
        assert step <= 512
        assert not any(port.attached for port in ports)


async def test_no_read_begins_to_wait_while_ports_are_shut() -> None:
    async with many_ports() as (manager, _, _), trio.open_nursery() as nursery:
        last = manager.ports[COUNT - 1]
        last.set_options(PortOptions(wait=True))
        with pytest.raises(trio.WouldBlock):
            last.read_nowait(1)
        nursery.start_soon(manager.shut)
        while manager.ports[0].attached:
            await trio.lowlevel.checkpoint()
        assert last.attached
        assert last.read_nowait(1) == []


async def test_a_port_that_comes_back_while_others_are_removed_stays() -> None:
    manager = PortManager()
    for port_id in range(COUNT):
        manager.add(port_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.remove_detached)
        await trio.lowlevel.checkpoint()
        driver, _ = open_driver(manager)
        back = manager.ports[COUNT - 1]
        back.attach(driver)
    assert manager.ports[COUNT - 1] is back
    driver.stop()
    await driver.detached.wait()


def folder_of(manager: PortManager) -> Folder:
    return Folder.of(manager, lambda port_id: Access(), Access(), Announcer())


@pytest.mark.expect_log("have the same name")
def test_names_are_found_at_once_however_many_there_are() -> None:
    manager = PortManager()
    begun = time.process_time()
    with folder_of(manager).following(OpenFiles()):
        for port_id in range(COUNT):
            manager.rename(manager.add(port_id), b"name" if port_id % 2 else b"name%d" % port_id)
        for port_id in range(COUNT):
            manager.remove(port_id)
    assert time.process_time() - begun < 4  # it took 10 s, and four times that for twice as many


def test_the_events_of_many_ports_begin_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that an opener would lose are counted, not made: that took 0.8 s for 32768 ports."""
    made: list[str] = []
    make_line = _events_file._port_line

    def counted(event: str, port: Port, *more: Any) -> bytes:
        made.append(event)
        return make_line(event, port, *more)

    monkeypatch.setattr(_events_file, "_port_line", counted)
    manager = PortManager()
    for port_id in range(COUNT):
        manager.add(port_id)
    opened = EventsFile(manager).open(Opener(1), os.O_RDONLY, lambda reader: None)
    lines = []
    with suppress(trio.WouldBlock):
        while True:
            lines += b"".join(opened.take_nowait(1 << 20)).splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["id"] for event in events[:-1]] == list(range(len(made) - 1))
    assert events[-1]["event"] == "lost"
    assert len(events) - 1 + events[-1]["count"] == COUNT + 1  # and "ready"


def test_a_link_that_is_cut_is_found_at_once_however_many_there_are() -> None:
    manager = PortManager()
    folder = folder_of(manager)
    tree = folder.tree
    with folder.following(OpenFiles()):
        for port_id in range(COUNT):
            manager.rename(manager.add(port_id), b"%d" % port_id + b"x" * 300)
        link = link_name(manager.ports[COUNT - 1].name) or b""
        begun = time.process_time()
        for _ in range(200):
            entry = tree.find(tree.by_name.inode, link)
            assert entry is not None
            assert tree.target(entry.inode) == b"../vcon%d" % (COUNT - 1)
            assert tree.find(tree.by_name.inode, link[:-1] + b"?") is None
        assert time.process_time() - begun < 1  # going through all names took 6 s


def test_names_with_one_cut_link_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their hashes are shortened, so a host can search for two names with one link."""
    monkeypatch.setattr(_cut_links, "link_name", lambda name: b"%~0123456789abcdef")
    links = CutLinks()
    ports = [Port(port_id) for port_id in range(3)]
    for port, name in zip(ports, (b"one", b"two", b"one"), strict=True):
        port.name = name
        links.port_added(port)
    assert links.name_of(b"%~0123456789abcdef") == b"one"
    links.port_removed(ports[0])
    assert links.name_of(b"%~0123456789abcdef") == b"one"
    ports[2].name = b"two"
    links.port_renamed(ports[2], b"one")
    assert links.name_of(b"%~0123456789abcdef") == b"two"
    links.port_removed(ports[1])
    links.port_removed(ports[2])
    assert links.name_of(b"%~0123456789abcdef") is None


@given(st.integers(0, 1 << 32))
@pytest.mark.expect_log("have the same name")
def test_names_are_those_of_the_ports(seed: int) -> None:
    numbers, manager = random.Random(seed), PortManager()
    folder = folder_of(manager)
    tree = folder.tree
    names = [b"", b"a", b"b/", b"%", b"..", b"x" * 300]
    with folder.following(OpenFiles()):
        for _ in range(60):
            port = manager.add(numbers.randrange(8))
            manager.rename(port, numbers.choice(names))
            if not numbers.randrange(4):
                manager.remove(numbers.randrange(8))
            for name in names[1:]:
                ids = [port_id for port_id, port in manager.ports.items() if port.name == name]
                found = manager.by_name(name)
                assert (found.id if found else None) == min(ids, default=None)
                link = link_name(name)
                if link is not None:
                    entry = tree.find(tree.by_name.inode, link)
                    assert (tree.target(entry.inode) if entry else None) == (
                        b"../vcon%d" % min(ids) if ids else None
                    )
            listed = [entry.name for entry in tree.names(tree.by_name.inode)]
            links = {link_name(port.name) for port in manager.ports.values()} - {None}
            assert listed == sorted(links)  # type: ignore[type-var]


@given(st.binary(min_size=1, max_size=300))
def test_a_link_has_an_attribute_with_its_name(name: bytes) -> None:
    if (link := link_name(name)) is not None:
        assert named_by(link, {link: name}.get) == name
    if (named := named_by(name, lambda link: None)) is not None:
        assert link_name(named) == name


def test_a_warning_of_one_name_names_two_ports(caplog: pytest.LogCaptureFixture) -> None:
    """However many ports have that name, a line does not grow with them."""
    manager = PortManager()
    for port_id in (5, 7, 9, 1):
        manager.rename(manager.add(port_id), b"same")
    assert caplog.messages == [
        "vcon5 and vcon7 have the same name, which leads to vcon5",
        "vcon5 and vcon9 have the same name, which leads to vcon5",
        "vcon1 and vcon5 have the same name, which leads to vcon1",
    ]
