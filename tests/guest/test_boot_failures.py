"""A guest that does not come up: the failure shows at once what it and QEMU have said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import evolve

from tests.guest import guest as machine
from tests.guest.guest import open_guest
from tests.qemu import releases
from tests.support import needs


@pytest.mark.parametrize(
    ("parameters", "arguments", "title", "said"),
    [
        ("rdinit=/none", (), "the guest's console", "Kernel panic - not syncing"),
        ("", ("-device", "none-such"), "QEMU's messages", "'none-such' is not a valid device"),
    ],
    ids=["a kernel that panics", "a QEMU that ends"],
)
async def test_what_was_said_is_shown(
    tmp_path: Path, parameters: str, arguments: Sequence[str], title: str, said: str
) -> None:
    needs.programs(*machine.PROGRAMS)
    if problem := machine.fetch():
        needs.cannot_run(problem)
    hardware = evolve(machine.Q35, parameters=parameters)
    with open_guest(tmp_path, machine.CACHE, releases.NAME, arguments, hardware=hardware) as guest:
        with pytest.raises(AssertionError) as raised:
            await guest.wait_booted()
    shown = str(raised.value)
    assert "the guest has ended before it had booted" in shown
    assert said in shown[shown.index(title) :]
