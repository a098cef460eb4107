"""A Debian guest for each file of this folder, booted with the file's SETUP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from tests.debian import image
from tests.debian.guest import Guest, open_guest
from tests.support import needs
from tests.support.remote.client import Remote


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make the guest before the first test: that may take longer than a test may."""
    folder = Path(__file__).parent
    wanted = any(item.path.is_relative_to(folder) for item in session.items)
    if wanted and not session.config.option.collectonly and not needs.missing(*image.PROGRAMS):
        image.make()


@pytest.fixture(scope="module")
def guest(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Guest]:
    """Boot the guest."""
    needs.programs(*image.PROGRAMS)
    if problem := image.make():
        needs.cannot_run(problem)
    setup = request.module.SETUP
    with open_guest(tmp_path_factory.mktemp("debian"), setup.files, setup.enabled) as booted:
        failed_before = request.session.testsfailed
        try:
            trio.run(booted.wait_booted)
            yield booted
        finally:
            if request.session.testsfailed > failed_before:
                print(
                    "the guest's journal:",
                    booted.journal("-b", "--facility=daemon,user,auth,authpriv"),
                    sep="\n",
                )


@pytest.fixture
async def remote(guest: Guest) -> AsyncIterator[Remote]:
    async with guest.open_remote() as remote:
        yield remote
