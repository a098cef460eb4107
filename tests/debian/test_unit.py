"""A Debian guest whose mounts come by the units of the package; one drives the device by VFIO.

The tests are in the order of a guest's life: the last one ends it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from tests.debian import uses
from tests.debian.guest import ADDRESS, LINE, MOUNTPOINT, Guest, until
from tests.debian.uses import program
from tests.support.remote.client import Remote

pytestmark = [pytest.mark.long, pytest.mark.limit(200)]

SETUP = uses.Setup(
    files={
        "/etc/modules-load.d/vconfs.conf": "vfio-pci\n",
        "/etc/vconfs/vcon.toml": f'device = "pci:{ADDRESS}"\nbind = true\noptions = "wait"\n',
        "/etc/vconfs/late.toml": 'device = "stream:tty:/dev/ttyS2"\noptions = "wait-for-host"\n',
        "/etc/systemd/system/vconfs@late.service.d/line.conf": (
            "[Service]\nDeviceAllow=/dev/ttyS2 rw\nTimeoutStartSec=infinity\n"
        ),
        "/etc/systemd/system/console-login.service": uses.example("console-login.service"),
        **uses.LINKS_FILES,
    },
    enabled={
        "vconfs@vcon.service": "multi-user.target",
        "vconfs@late.service": "multi-user.target",
        "udev-links.service": "mnt-vcon.mount",
        "console-login.service": "mnt-vcon.mount",
    },
)


async def test_the_unit_mounts_the_ports(remote: Remote) -> None:
    await until(remote, "systemctl is-active vconfs@vcon")
    shown = await remote.run("systemctl show -p StatusText,NRestarts,WatchdogUSec vconfs@vcon")
    assert set(shown.splitlines()) == {
        "NRestarts=0",
        "WatchdogUSec=30s",
        f"StatusText=pci:{ADDRESS} mounted on {MOUNTPOINT}",
    }
    driver = await remote.readlink(f"/sys/bus/pci/devices/{ADDRESS}/driver")
    assert driver.endswith("/vfio-pci")


async def test_a_host_end_may_come_later(guest: Guest, remote: Remote, tmp_path: Path) -> None:
    """It is at the other end of a serial line. The unit waits, and fails not once."""
    shown = await remote.run("systemctl show -p ActiveState,NRestarts vconfs@late")
    assert set(shown.splitlines()) == {"ActiveState=activating", "NRestarts=0"}
    terminal = tmp_path / "terminal"
    line = ["socat", f"PTY,link={terminal},raw,echo=0", f"UNIX-CONNECT:{guest.folder / LINE}"]
    listen = f"stream:tty:{terminal}"
    host = [sys.executable, "-m", "vconfs", "host", "--listen", listen, "--port", "a=echo"]
    async with program(*line):
        with trio.fail_after(20):
            while not terminal.exists():
                await trio.sleep(0.05)
        async with program(*host):
            await until(remote, "systemctl is-active vconfs@late", 150)
            said = await remote.run("exec 3<>/mnt/late/by-name/a; echo hi >&3; sed 1q <&3")
            assert said == "hi\n"
            assert await remote.run("systemctl show -P NRestarts vconfs@late") == "0\n"
            await remote.run("systemctl stop vconfs@late")


async def test_links_lead_to_the_ports(remote: Remote) -> None:
    await uses.links_lead_to_the_ports(remote)


async def test_a_login_at_the_console_is_seen_by_the_host(guest: Guest, remote: Remote) -> None:
    await uses.a_login_is_seen_by_the_host(guest, remote, "/dev/pts/[0-9]+")


async def test_the_agent_answers(guest: Guest, remote: Remote) -> None:
    await uses.the_agent_answers(guest, remote)


async def test_the_clipboard_is_shared(guest: Guest, remote: Remote, tmp_path: Path) -> None:
    await uses.the_clipboard_is_shared(guest, remote, tmp_path)


async def test_the_unit_restarts(guest: Guest, remote: Remote) -> None:
    await remote.run("systemctl restart vconfs@vcon")
    await uses.links_lead_to_the_ports(remote)
    await uses.the_agent_answers(guest, remote)


async def test_the_journal_has_no_warning(remote: Remote) -> None:
    await uses.the_journal_has_no_warning(remote)


async def test_a_daemon_that_hangs_is_replaced(guest: Guest, remote: Remote) -> None:
    """The watchdog kills it; its dead mount is not in the way of the next one."""
    await remote.run("kill -STOP $(systemctl show -P MainPID vconfs@vcon)")
    await until(remote, "systemctl show -P NRestarts vconfs@vcon | grep -qx 1", 90)
    await until(remote, "systemctl is-active vconfs@vcon", 90)
    assert await remote.run("systemctl show -P NRestarts vconfs@vcon") == "1\n"
    await uses.links_lead_to_the_ports(remote)
    await uses.the_agent_answers(guest, remote)


async def test_the_guest_ends_quickly(guest: Guest) -> None:
    await uses.the_end_is_quick(guest)
