"""How our driver differs from Linux's own on purpose, and where that is written down."""

from __future__ import annotations

from attrs import frozen

from tests.support.compare.scenario import Recording


@frozen
class Difference:
    """One answer that is not Linux's."""

    linux: str
    ours: str
    reason: str


_SHARED = "any number of programs can have a port open (-o exclusive: EBUSY, as with Linux)"
_CUT = "a write is cut into as many buffers as there are; Linux takes 32 KiB at a time"
_APART = "a hang-up is one end of file between the bytes of two connections; Linux joins them"
_ERROR = "a port that is gone is POLLERR too, so that a program that polls for nothing learns it"

#: Everything else must be the same, and these must be so.
ALLOWED: dict[tuple[str, str], Difference] = {
    ("no host yet", "open"): Difference("EBUSY", "well", _SHARED),
    ("the program writes much", "write"): Difference("32768", "131072", _CUT),
    ("the host goes and comes back", "read more"): Difference("b'new'", "b''", _APART),
    ("the host goes and comes back", "read even more"): Difference("EAGAIN", "b'new'", _APART),
    ("the port is unplugged", "poll"): Difference("HUP", "ERR HUP", _ERROR),
}


def check(linux: Recording, ours: Recording) -> None:
    """Compare two recordings; only what is allowed may differ, and must."""
    allowed = {asked: (found.linux, found.ours) for asked, found in ALLOWED.items()}
    found = differences(linux, ours)
    assert found == allowed, sorted(set(found.items()) ^ set(allowed.items()))


def differences(linux: Recording, ours: Recording) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the differences between two recordings: Linux's answer, and ours."""
    return {
        asked: (linux.get(asked, "-"), ours.get(asked, "-"))
        for asked in {**linux, **ours}
        if linux.get(asked) != ours.get(asked)
    }
