"""One guest of user-mode Linux for nearly all tests of this folder, with each kernel in turn.

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

from tests.support import needs
from tests.support.remote.client import Remote
from tests.uml import kernels
from tests.uml.hosts import HostEnd, open_host
from tests.uml.kernels import Kernel
from tests.uml.line import open_mount
from tests.uml.machine import Guest, open_guest

log = logging.getLogger(__name__)

CONSOLE, DATA, OTHER = "org.example.console", "org.example.data", "org.example.other"


#: Why a kernel has no tests in this run.
_PUT_ASIDE: list[str] = []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fetch and boot the kernels before the first test: that may take longer than a test may.

    A kernel that does not run here has no tests, if another one does.
    """
    wanted = [item for item in items if "kernel" in getattr(item, "fixturenames", ())]
    if not wanted or config.option.collectonly or needs.missing(*kernels.PROGRAMS):
        return
    found = kernels.find()
    if found.kernels:
        _PUT_ASIDE.extend(found.put_aside.values())
        aside = [item for item in wanted if _kernel_of(item) in found.put_aside]
        config.hook.pytest_deselected(items=aside)
        items[:] = [item for item in items if item not in aside]


def _kernel_of(item: pytest.Item) -> str:
    return str(item.callspec.params["kernel"]) if isinstance(item, pytest.Function) else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _PUT_ASIDE:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", params=kernels.SUITES)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Each kernel that boots here."""
    needs.programs(*kernels.PROGRAMS)
    found = kernels.find()
    if not found.kernels:
        needs.cannot_run("no user-mode Linux runs here:\n" + "\n".join(found.put_aside.values()))
    return found.kernels[request.param]


@contextmanager
def boot(folder: Path, kernel: Kernel, host: HostEnd) -> Iterator[Guest]:
    """Boot a guest with a virtio console of `host`, if need be twice."""
    with ExitStack() as stack:
        guest = stack.enter_context(open_guest(folder, kernel, [host.device]))
        if not trio.run(guest.boots):
            log.warning("the guest does not boot; once more; %s", guest.said)
            stack.close()
            guest = stack.enter_context(open_guest(folder, kernel, [host.device]))
            assert trio.run(guest.boots), f"the guest does not boot; {guest.said}"
        for module in kernel.modules:
            trio.run(guest.run, f"busybox insmod {module}")
        yield guest


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory, kernel: Kernel) -> Iterator[HostEnd]:
    """The host end of the guest's virtio console."""
    ports = {CONSOLE: ",id=0,console", DATA: ",id=1", OTHER: ",id=2"}
    with open_host(tmp_path_factory.mktemp("host"), ports) as end:
        yield end


@pytest.fixture(scope="session")
def guest(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    kernel: Kernel,
    host: HostEnd,
) -> Iterator[Guest]:
    """A guest, whose status is that of the tests."""
    with boot(tmp_path_factory.mktemp("guest"), kernel, host) as booted:
        yield booted
        status = 1 if request.session.testsfailed else 0
        trio.run(booted.end, status)
        booted.check_ended(status)


@pytest.fixture
async def remote(guest: Guest) -> AsyncIterator[Remote]:
    async with guest.open_remote() as remote:
        yield remote


@pytest.fixture(scope="module")
def line_host(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostEnd]:
    """The host end whose ports are mounted in the guest."""
    with open_mount(guest, tmp_path_factory.mktemp("line")) as host:
        yield host
