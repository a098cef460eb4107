"""A mount in the test's own process, whose clients run in threads and as programs.

The test's thread serves the mount: whatever it does itself with a file there must not wait.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
import trio
from attrs import frozen

from tests.support.devices import DEVICES, OpenDevice
from tests.support.limits import LONG
from tests.support.mirrored import GUEST, FarSide, open_mirrored
from tests.support.waiting import until
from vconfs.files._events_file import EventsFile
from vconfs.files.rules import parse_rules
from vconfs.files.tree import Access
from vconfs.guest.port import Port, PortOptions
from vconfs.guest.ports import PortManager
from vconfs.host.host import Host, open_host
from vconfs.host.spec import parse_port
from vconfs.mounting import Plan, open_mount

#: Seconds that a test has; it ends in order then, with nothing left mounted.
_LIMIT = 20


@frozen
class Mounted:
    """A mount, and both ends behind it."""

    path: Path
    #: The far side of the ports: a host end or, for a mount of the host's side, the guest.
    host: Host | FarSide
    manager: PortManager
    host_end: Host
    #: The side of the ports that is mounted: "guest" or "host".
    side: str = "guest"

    @property
    def other_side(self) -> str:
        """The word for the far side in the names of attributes and in events."""
        return next(side for side in SIDES if side != self.side)

    @property
    def mountpoint(self) -> Path:
        """The mount; the files of a host's side are in a folder of it."""
        return self.path if self.side == "guest" else self.path.parent

    def port(self, port_id: int = 0) -> Port:
        return self.manager.ports[port_id]

    def file(self, port_id: int = 0) -> Path:
        return self.path / f"vcon{port_id}"

    @property
    def events_readers(self) -> int:
        """Return how many openers of the file of events have read the present state."""
        events = next(one for one in self.manager.observers if isinstance(one, EventsFile))
        return sum(not reader.lines for reader in events._readers.values())

    async def run(self, command: str, *, code: int = 0) -> str:
        """Run a shell command in the mount, with $P the first port's file."""
        done = await trio.run_process(
            ["bash", "-c", command],
            cwd=self.path,
            env={**os.environ, "P": str(self.file())},
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode()
        assert done.returncode == code, output
        return output

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds that follows from what the mount does."""
        await until(condition)


@asynccontextmanager
async def program(*command: str, stdin: int = subprocess.DEVNULL) -> AsyncIterator[trio.Process]:
    """Run a program beside the test, which does not outlive it."""
    # Tests that were started in the background ignore SIGINT, and so would this process.
    process = await trio.lowlevel.open_process(
        ["env", "--default-signal", "-u", "PYTHONUNBUFFERED", *command],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True), trio.move_on_after(5):
            await process.wait()
        if process.stdout is not None:
            await process.stdout.aclose()
        if process.stdin is not None:
            await process.stdin.aclose()


class OpenMount(Protocol):
    def __call__(
        self,
        *specs: str,
        access: Access | None = None,
        limit_seconds: float = _LIMIT,
        ttys: Sequence[str] = (),
        rules: str = "",
        **options: object,
    ) -> AbstractAsyncContextManager[Mounted]: ...


#: The tests of what ports do, which hold for each device. What is made of ports without the device
#: (names, rules, programs on files) is tested with one.
FOR_ALL_DEVICES = ("test_bulk", "test_events_file", "test_files", "test_tap")

SIDES = ("guest", "host")
#: The device with which both sides are tested. In the long form these are all devices.
WITH_BOTH_SIDES = "embedded"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of what ports do with every device; all tests of a mount, with both sides.

    A test with the marker `guest_side` says why it does not hold for a mount of the host's side.
    """
    if "mounted" not in metafunc.fixturenames:
        return
    sides = SIDES if metafunc.definition.get_closest_marker("guest_side") is None else SIDES[:1]
    if not metafunc.module.__name__.endswith(FOR_ALL_DEVICES):
        return metafunc.parametrize("side", sides, indirect=True)
    cases = [
        pytest.param(device, side, marks=_expected_of(device))
        for device in DEVICES
        for side in (sides if LONG or device == WITH_BOTH_SIDES else SIDES[:1])
    ]
    return metafunc.parametrize(("device", "side"), cases, indirect=True)


def _expected_of(device: str) -> tuple[pytest.MarkDecorator, ...]:
    """Return the marks of a device's tests: an end that has a link says when its peer leaves."""
    if device == "embedded":
        return ()
    return (pytest.mark.expect_log("guest lost: the guest end leaves"),)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> OpenDevice:
    """The way from the host's end to the guest's end."""
    return DEVICES[getattr(request, "param", "embedded")]


@pytest.fixture
def side(request: pytest.FixtureRequest) -> str:
    """The side of the ports that is mounted."""
    return getattr(request, "param", SIDES[0])


@pytest.fixture
def mounted(tmp_path: Path, device: OpenDevice, side: str) -> OpenMount:
    """Mount ports like "name=echo", with PortOptions, below a temporary folder."""

    @asynccontextmanager
    async def open_it(
        *specs: str,
        access: Access | None = None,
        limit_seconds: float = _LIMIT,
        ttys: Sequence[str] = (),
        rules: str = "",
        **options: object,
    ) -> AsyncIterator[Mounted]:
        path = tmp_path / "mnt"
        path.mkdir(exist_ok=True)
        port_options = PortOptions(**options)  # type: ignore[arg-type]
        ports = [parse_port(port) for port in specs or ["port=echo"]]
        manager = PortManager(lambda port_id: port_options)
        plan = Plan(
            path,
            port_options=port_options,
            access=access or Access(),
            ttys=ttys,
            rules=parse_rules(rules, "rules"),
        )
        if side == "host":
            async with open_mirrored(
                plan, ports, lambda host, guest: device(host, guest, tmp_path)
            ) as (far, manager):
                with trio.fail_after(limit_seconds):
                    yield Mounted(path / GUEST, far, manager, far.host, side)
            return
        async with (
            open_host(ports) as host,
            device(host, manager, tmp_path),
            open_mount(plan, manager),
        ):
            with trio.fail_after(limit_seconds):
                yield Mounted(path, host, manager, host)

    return open_it


#: The shells that scripts for /bin/sh have to run in.
SHELLS = {"dash": ["dash"], "busybox": ["busybox", "sh"]}


@pytest.fixture(params=sorted(SHELLS))
def shell(request: pytest.FixtureRequest) -> list[str]:
    words = SHELLS[request.param]
    if not shutil.which(words[0]):
        pytest.skip(f"needs {words[0]}")
    return words
