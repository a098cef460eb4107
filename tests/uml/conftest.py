"""One guest of user-mode Linux for all tests of this folder.

It has a serial line with nothing at its other end yet, and two virtio consoles, whose host ends
are programs of ours: one that serves all the time, and one that is to be killed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest
import trio

from tests.remote.client import Remote
from tests.uml import machine
from tests.uml.hosts import HostEnd, open_host
from tests.uml.machine import Guest, open_guest

log = logging.getLogger(__name__)

#: What the kernel says where the CPU has more registers (AMX) than it has room for.
_TOO_MANY_REGISTERS = "ptrace set fp regs failed, errno 14"

CONSOLE, DATA, OTHER = "org.example.console", "org.example.data", "org.example.other"
DOOMED = "org.example.doomed"


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostEnd]:
    """The host end of the first virtio console."""
    ports = {CONSOLE: ",id=0,console", DATA: ",id=1", OTHER: ",id=2"}
    with open_host(tmp_path_factory.mktemp("host"), ports) as end:
        yield end


@pytest.fixture(scope="session")
def doomed_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostEnd]:
    """The host end of the second virtio console."""
    with open_host(tmp_path_factory.mktemp("doomed"), {DOOMED: ",id=1"}) as end:
        yield end


@pytest.fixture(scope="session")
def guest(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    host: HostEnd,
    doomed_host: HostEnd,
) -> Iterator[Guest]:
    """Boot the guest; its status is that of the tests."""
    if machine.missing():
        pytest.skip("apt-get, busybox, unshare or taskset is not installed")
    folder, boot = tmp_path_factory.mktemp("uml"), machine.kernel()
    devices = (host.device, doomed_host.device)
    with ExitStack() as stack:
        booted = stack.enter_context(open_guest(folder, boot, devices))
        if not trio.run(booted.boots):
            said = booted.console
            if _TOO_MANY_REGISTERS in said:
                pytest.skip("user-mode Linux 6.1 cannot run on a CPU with AMX")
            log.warning("the guest does not boot; once more. It said:\n%s", said)
            stack.close()
            booted = stack.enter_context(open_guest(folder, boot, devices))
            assert trio.run(booted.boots), f"the guest does not boot; it said:\n{booted.console}"
        yield booted
        status = 1 if request.session.testsfailed else 0
        trio.run(booted.end, status)
        booted.check_ended(status)


@pytest.fixture
async def remote(guest: Guest) -> AsyncIterator[Remote]:
    async with guest.open_remote() as remote:
        yield remote


@pytest.fixture(scope="session")
def modules(guest: Guest) -> None:
    """Have the modules in the guest: FUSE, and Linux's own driver of virtio consoles."""
    trio.run(run_in, guest, f"cd {machine.CACHE}; busybox insmod fuse.ko")


async def run_in(guest: Guest, command: str) -> None:
    async with guest.open_remote() as remote:
        await remote.run(command)
