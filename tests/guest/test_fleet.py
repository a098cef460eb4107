"""examples/fleet.sh with three kinds of guests at one host end: a stream, vhost-user, and QEMU.

The guest of QEMU has no vconfs: it answers at the file of the kernel's own driver. The other two
are mounts of vconfs on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.guest.guest import Guest
from tests.guest.test_front_end import MACHINES, booted, require
from tests.mount.examples import EXAMPLES
from tests.mount.test_examples_fleet import PORT, ask, guest, put_programs
from tests.mount.test_host_files import mounting_host
from tests.support.waiting import block_until

pytestmark = pytest.mark.limit(120)

SHELL = ["sh"]
NAMES = ("db1", "vm1", "web1")
TABLES = """
[template]
port = "org.example.fleet=mount"

[[guest]]
name = "db1"
listen = "vhost-user:{folder}/db1.sock"

[[guest]]
name = "vm1"
listen = "vhost-user:{folder}/vm1.sock"
dialect = "virtio1"
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Guest]]:
    """A host end whose three guests listen to questions; its folder, and the guest of QEMU."""
    folder = tmp_path_factory.mktemp("fleet")
    qemu = require(MACHINES["pci"])
    (folder / "hosts.toml").write_text(TABLES.format(folder=folder))
    (folder / "vm1").mkdir()
    put_programs(folder, "vm1")  # before the guest boots: it has the folders of this machine
    with ExitStack() as stack:
        words = ("--config", f"{folder}/hosts.toml")
        stack.enter_context(mounting_host(folder, *words, listeners=3))
        device = folder / "vm1.sock"
        vm1 = stack.enter_context(booted(MACHINES["pci"], folder / "vm1", qemu, device))
        trio.run(answer_in, vm1, folder)
        for name, url in (("web1", "stream:unix:{}/any"), ("db1", "vhost-user:{}/db1.sock")):
            stack.enter_context(guest(url.format(folder), folder, name, SHELL))
        for name in NAMES:
            path = folder / "guests" / name / PORT
            block_until(lambda path=path: os.getxattr(path, "user.guest") == b"1")  # type: ignore[misc]
        yield folder, vm1


async def answer_in(vm1: Guest, folder: Path) -> None:
    async with vm1.open_remote() as remote:
        port = await remote.kernel_port("org.example.fleet")
        answer = f"PATH={folder}/vm1-bin:$PATH setsid sh {EXAMPLES}/fleet.sh answer {port}"
        await remote.run(f"{answer} </dev/null >/dev/null 2>&1 &")


async def run_in(vm1: Guest, command: str) -> str:
    async with vm1.open_remote() as remote:
        return await remote.run(command)


def test_who_is_logged_in_on_which_guest(fleet: tuple[Path, Guest]) -> None:
    folder, _ = fleet
    assert ask("who", folder / "guests", SHELL) == [f"{name}: user-of-{name}" for name in NAMES]


def test_the_sessions_of_all_guests_are_locked(fleet: tuple[Path, Guest]) -> None:
    folder, vm1 = fleet
    assert ask("lock", folder / "guests", SHELL) == [f"{name}: locked" for name in NAMES]
    assert trio.run(run_in, vm1, f"cat {folder}/vm1-locked") == "lock-sessions\n"
    for name in ("db1", "web1"):
        assert (folder / f"{name}-locked").read_text() == "lock-sessions\n"
    assert not (folder / "vm1-locked").exists()  # it is in the guest


def test_the_systems_of_all_guests_are_collected(fleet: tuple[Path, Guest]) -> None:
    folder, _ = fleet
    systems = dict(line.split(": ", 1) for line in ask("system", folder / "guests", SHELL))
    assert sorted(systems) == list(NAMES)
    assert all("Debian" in system for system in systems.values())
