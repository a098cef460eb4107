"""Shared code of all tests."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.support.booted import Booted
from tests.support.examples import examples
from tests.support.watched import Suite

pytest_plugins = ["tests.support.plugin"]

# Below the temporary folder are unix sockets, whose paths have at most 107 bytes. Of these a test
# needs up to 90 for itself.
if len(os.fsencode(tempfile.gettempdir())) > 17 and os.access("/tmp", os.W_OK):
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"

# What tests make is for other users to read if they do not say otherwise.
os.umask(0o022)

# Many tests serve a mount in their own process. Under vfork the whole process stands still until a
# new child has entered its working folder and closed the files that it inherited. If one of these
# is of the mount, each waits for the other for ever. See docs/howto/embedding.md.
subprocess._USE_VFORK = False  # type: ignore[misc]

# How long an example takes depends on what else the machine does; the tests have their own limits.
settings.register_profile("vconfs", deadline=None, max_examples=examples(50))
settings.load_profile("vconfs")

_suite = Suite()
_suite.begin()


@pytest.fixture(autouse=True)
def watched_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if vconfs has kept the event loop away for too long; see watched.py."""
    yield
    may_be_busy = request.node.get_closest_marker("busy") is not None
    too_long = _suite.take_too_long(request.node.nodeid, counts=not may_be_busy)
    if too_long and not may_be_busy:
        pytest.fail("the event loop was away: " + "; ".join(too_long), pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def _small_heap() -> None:
    """Keep what other tests have left in memory from making the garbage collector slow."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the longest step of the event loop, and where it was."""
    terminalreporter.write_line(f"the longest step of the event loop: {_suite.longest.told}")


def pytest_unconfigure() -> None:
    _suite.end()


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show what the guest of a test said when the test fails."""
    report = yield
    if report.failed:
        fixtures = getattr(item, "funcargs", {}).values()
        owners = [getattr(fixture, "guest", fixture) for fixture in fixtures]
        for booted in {id(owner): owner for owner in owners}.values():
            if isinstance(booted, Booted):
                report.sections += booted.ends.items()
    return report
