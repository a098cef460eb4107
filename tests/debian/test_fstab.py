"""A Debian guest whose mount comes by fstab, with the ports of the kernel's driver.

The tests are in the order of a guest's life: the last one ends it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.debian import uses
from tests.debian.guest import AGENT, CLIPBOARD, CONSOLE, MOUNTPOINT, WHO, Guest
from tests.support.remote.client import Remote

pytestmark = [pytest.mark.long, pytest.mark.limit(200)]

SETUP = uses.Setup(
    files={
        "/etc/fstab": (
            "/dev/vda / ext4 errors=remount-ro 0 1\n"
            f"kernel {MOUNTPOINT} fuse.vconfs wait,nofail 0 0\n"
        ),
        **uses.LINKS_FILES,
    },
    enabled={
        "udev-links.service": "mnt-vcon.mount",
        "serial-getty@hvc0.service": "getty.target",  # the kernel's console
    },
)


async def test_the_mount_comes_by_fstab(remote: Remote) -> None:
    assert await remote.run(f"findmnt -n -o FSTYPE,SOURCE {MOUNTPOINT}") == "fuse.vconfs kernel\n"
    names = await remote.listdir(f"{MOUNTPOINT}/by-name")
    assert names == [AGENT, CLIPBOARD, CONSOLE, WHO]
    assert await remote.run("systemctl --failed --no-legend") == ""


async def test_links_lead_to_the_ports(remote: Remote) -> None:
    await uses.links_lead_to_the_ports(remote)


async def test_a_login_at_the_console_is_seen_by_the_host(guest: Guest, remote: Remote) -> None:
    await uses.a_login_is_seen_by_the_host(guest, remote, "/dev/hvc0")


async def test_the_agent_answers(guest: Guest, remote: Remote) -> None:
    await uses.the_agent_answers(guest, remote)


async def test_the_clipboard_is_shared(guest: Guest, remote: Remote, tmp_path: Path) -> None:
    await uses.the_clipboard_is_shared(guest, remote, tmp_path)


async def test_the_mount_comes_again(remote: Remote) -> None:
    await remote.run("systemctl restart mnt-vcon.mount")
    await uses.links_lead_to_the_ports(remote)


async def test_the_journal_has_no_warning(remote: Remote) -> None:
    await uses.the_journal_has_no_warning(remote)


async def test_the_guest_ends_quickly(guest: Guest) -> None:
    await uses.the_end_is_quick(guest)
