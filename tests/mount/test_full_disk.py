"""Files of guests on a disk that is full for a while, and files that logrotate takes away."""

from __future__ import annotations

import logging
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.support.waiting import until
from vconfs.device.embedded import open_embedded
from vconfs.guest.driver import drive
from vconfs.guest.port import PortOptions
from vconfs.guest.ports import PortManager
from vconfs.host.host import open_host
from vconfs.host.spec import parse_port
from vconfs.mounting import Plan, open_mount

from .conftest import OpenMount, program

SPACE = 2 << 20
LINES = 1 << 18  # of 16 bytes

#: Writes numbered lines, by one write call each 100 of them.
WRITE = f"""
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
for start in range(0, {LINES}, 100):
    lines = b"".join(b"%015d\\n" % number for number in range(start, min(start + 100, {LINES})))
    while lines:
        lines = lines[os.write(fd, lines):]
"""
WHOLE = b"".join(b"%015d\n" % number for number in range(LINES))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of SPACE bytes."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SPACE}", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
async def test_writers_wait_for_a_full_disk_and_lose_nothing(
    dialect: str, disk: Path, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    log = disk / "log"
    (tmp_path / "mnt").mkdir()
    manager = PortManager(lambda port_id: PortOptions(throttle="block"))
    async with (
        open_host([parse_port(f"log=file:{log}")]) as host,
        drive(manager, open_embedded(host, dialect)),
        open_mount(Plan(tmp_path / "mnt"), manager),
        program("python3", "-c", WRITE, str(tmp_path / "mnt" / "vcon0")) as writer,
    ):
        with trio.fail_after(30):
            port = host.ports[0]
            await until(said)
            held_back = -1
            while held_back != port.counters.bytes_in:  # until the writer waits
                held_back = port.counters.bytes_in
                await trio.sleep(0.3)
            assert writer.returncode is None
            assert held_back < len(WHOLE)
            if dialect == "v8":
                assert port.host_throttled
            subprocess.run(["mount", "-o", f"remount,size={4 * SPACE}", disk], check=True)
            assert await writer.wait() == 0
            await until(lambda: log.stat().st_size == len(WHOLE))
            assert log.read_bytes() == WHOLE
            assert port.counters.dropped == port.counters.resets == 0
    assert said() == [
        f"port 0: {log}: No space left on device; trying again",
        f"port 0: {log} can be written again",
    ]


async def test_a_file_as_large_as_files_may_be(
    mounted: OpenMount, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    log = tmp_path / "log"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with mounted(f"log=file:{log}", throttle="block") as it:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            async with program("python3", "-c", WRITE, str(it.file())) as writer:
                await it.until(said)
                assert log.stat().st_size == 100_000
                log.rename(tmp_path / "log.1")
                await it.until(lambda: log.exists() and log.stat().st_size == 100_000)
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                assert await writer.wait() == 0
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await it.until(lambda: log.stat().st_size == len(WHOLE) - 100_000)
        assert (tmp_path / "log.1").read_bytes() + log.read_bytes() == WHOLE
    assert said()[0] == f"port 0: {log}: File too large; trying again"


# --- logrotate ----------------------------------------------------------------------------

_IN_THE_WAY = re.compile("destination .* already exists, renaming to .*")


@pytest.fixture
def rotate(tmp_path: Path) -> Callable[[str], None]:
    """Rotate the file `log` with these directives of logrotate.

    When a file is in its way, which we have made just then, it says so and moves the file.
    """
    logrotate = shutil.which("logrotate") or "/usr/sbin/logrotate"
    config, state = tmp_path / "rotate.conf", tmp_path / "rotate.state"

    def run(directives: str) -> None:
        # What is in a folder that anyone may write to is only rotated for a named user.
        config.write_text(f"su root root\n{tmp_path}/log {{\nrotate 90\n{directives}\n}}\n")
        config.chmod(0o600)
        done = subprocess.run(
            [logrotate, "--force", "--state", state, config],
            capture_output=True,
            text=True,
            check=False,
        )
        said = [line for line in done.stderr.splitlines() if not _IN_THE_WAY.search(line)]
        assert (done.returncode, said) == (0, [])

    return run


@pytest.mark.parametrize("directives", ["create 0640", "nocreate", "copytruncate"])
async def test_logrotate(
    directives: str,
    mounted: OpenMount,
    tmp_path: Path,
    rotate: Callable[[str], None],
    said: Callable[[], list[str]],
) -> None:
    log = tmp_path / "log"
    async with mounted(f"log=file:{log}") as it:
        for number in (b"1", b"2", b"3"):
            await it.run(f"echo {number.decode()} >$P")
            await it.until(lambda: log.exists() and log.read_bytes() == number + b"\n")  # noqa: B023
            assert log.stat().st_mode & 0o777 == (
                0o640 if directives.startswith("create") and number != b"1" else 0o600
            )
            await trio.to_thread.run_sync(rotate, directives)
    assert [(tmp_path / f"log.{age}").read_bytes() for age in (3, 2, 1)] == [b"1\n", b"2\n", b"3\n"]
    assert said() == []


async def test_logrotate_while_a_guest_writes(
    mounted: OpenMount, tmp_path: Path, rotate: Callable[[str], None]
) -> None:
    log = tmp_path / "log"
    async with mounted(f"log=file:{log}", throttle="block") as it:
        async with program("python3", "-c", WRITE, str(it.file())) as writer:
            while writer.poll() is None:
                await it.until(log.exists)
                await trio.to_thread.run_sync(rotate, "create")
            assert writer.returncode == 0
        await it.until(lambda: not it.host.ports[0].queued)
    # logrotate moves a file out of its way that we made before it could: log-DATE.backup.
    lines = b"".join(file.read_bytes() for file in tmp_path.glob("log*")).splitlines(keepends=True)
    assert sorted(lines) == WHOLE.splitlines(keepends=True)
