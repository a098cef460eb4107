"""Every test of this folder runs with the machine's QEMU, and with the newest one.

In an everyday run only some of them run with the newest, each for a part of the device that QEMU
could change: with VCONFS_LONG=1 all do.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.qemu import machine, releases

#: Tests that always run with both.
_ALWAYS_BOTH = frozenset(
    (
        "test_a_guest_that_does_not_read_holds_the_host_back",
        "test_a_host_that_does_not_read",
        "test_data_goes_both_ways",
        "test_every_byte_arrives_in_order",
        "test_ports_are_plugged_and_unplugged",
        "test_ports_names_and_kinds",
        "test_qemu_is_killed_under_a_reader",
        "test_reset_while_busy",
        "test_shell_and_names",
        "test_the_host_connects_and_disconnects",
        "test_vectors",
    )
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    both = releases.LONG or metafunc.function.__name__ in _ALWAYS_BOTH
    names = [*releases.PROGRAMS] if both else ["own"]
    metafunc.parametrize("release", names, indirect=True, scope="package")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch the newest QEMU before the first test: that may take longer than a test may."""
    wanted = any("newest" in item.name for item in session.items)
    if wanted and not session.config.option.collectonly:
        releases.fetch()


@pytest.fixture(autouse=True, scope="package")
def release(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the tests with this release of QEMU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "QEMU", releases.require(request.param))
        yield request.param
