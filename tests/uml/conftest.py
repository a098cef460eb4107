"""One guest of user-mode Linux for nearly all tests of this folder.

It has a serial line with nothing at its other end yet, and a virtio console, whose host end is a
program of ours.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

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


@contextmanager
def boot(folder: Path, host: HostEnd) -> Iterator[Guest]:
    """Boot a guest with a virtio console of `host`, if need be twice."""
    if machine.missing():
        pytest.skip("apt-get, busybox, setpriv, unshare or taskset is not installed")
    kernel = machine.kernel()
    with ExitStack() as stack:
        guest = stack.enter_context(open_guest(folder, kernel, [host.device]))
        if not trio.run(guest.boots):
            said = guest.console
            if _TOO_MANY_REGISTERS in said:
                pytest.skip("user-mode Linux 6.1 cannot run on a CPU with AMX")
            log.warning("the guest does not boot; once more. It said:\n%s", said)
            stack.close()
            guest = stack.enter_context(open_guest(folder, kernel, [host.device]))
            assert trio.run(guest.boots), f"the guest does not boot; it said:\n{guest.console}"
        trio.run(run_in, guest, f"cd {machine.CACHE}; for m in *.ko; do busybox insmod $m; done")
        yield guest


async def run_in(guest: Guest, command: str) -> None:
    async with guest.open_remote() as remote:
        await remote.run(command)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostEnd]:
    """The host end of the guest's virtio console."""
    ports = {CONSOLE: ",id=0,console", DATA: ",id=1", OTHER: ",id=2"}
    with open_host(tmp_path_factory.mktemp("host"), ports) as end:
        yield end


@pytest.fixture(scope="session")
def guest(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, host: HostEnd
) -> Iterator[Guest]:
    """A guest, whose status is that of the tests."""
    with boot(tmp_path_factory.mktemp("guest"), host) as booted:
        yield booted
        status = 1 if request.session.testsfailed else 0
        trio.run(booted.end, status)
        booted.check_ended(status)


@pytest.fixture
async def remote(guest: Guest) -> AsyncIterator[Remote]:
    async with guest.open_remote() as remote:
        yield remote
