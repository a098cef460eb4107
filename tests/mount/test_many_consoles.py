"""Many consoles, and consoles that come and go: what they take of the machine is bounded."""

from __future__ import annotations

import errno
import logging
import os

import pytest

from tests.support.threads import in_thread
from tests.unit.host.chardevs.chardev_port import all_descriptors
from vconfs.files import consoles
from vconfs.host.spec import parse_port

from .conftest import OpenMount

pytestmark = pytest.mark.guest_side("on the host's side a terminal is the chardev pty")

#: More than the inotify instances that a user may have.
COUNT = 150


def instances() -> int:
    return list(all_descriptors().values()).count("anon_inode:inotify")


async def test_all_ptys_share_one_inotify_instance(
    mounted: OpenMount, caplog: pytest.LogCaptureFixture
) -> None:
    before = instances()
    async with mounted(*["=null,console"] * COUNT) as it:
        await it.until(lambda: all(port.pty for port in it.manager.ports.values()))
        assert len(it.manager.ports) == COUNT
        assert instances() == before + 1
        for _ in range(20):
            added = await it.host_end.add(parse_port("=null,console"))
            await it.until(
                lambda port_id=added.id: port_id in it.manager.ports and it.port(port_id).pty  # type: ignore[misc]
            )
            it.host_end.remove(added.id)
            await it.until(lambda port_id=added.id: port_id not in it.manager.ports)  # type: ignore[misc]
        assert instances() == before + 1
        names = await in_thread(lambda: os.listdir(it.path))
        assert sum(name.startswith("hvc") for name in names) == COUNT
    assert caplog.messages == []


async def test_a_lack_of_ptys_is_logged_once(
    mounted: OpenMount, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(consoles, "open_pty", fail)
    async with mounted(*["=null,console"] * 40) as it:
        await it.until(lambda: len(it.manager.ports) == 40)
        for port in it.manager.ports.values():
            assert not port.pty
    warnings = [line for line in caplog.records if line.levelno == logging.WARNING]
    assert [line.getMessage() for line in warnings] == ["vcon0 has no pty: No space left on device"]
