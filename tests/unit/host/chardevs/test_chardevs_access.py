"""Who may use the sockets, fifos, files and ptys that chardevs make: mode, owner, group."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import until
from vconfs.errors import VconfsError
from vconfs.host.chardev import parse_chardev
from vconfs.host.chardevs.ptys import Pty

from .chardev_port import serving

#: What a chardev makes, by how it is written.
MADE = {
    "unix:{at}": ["{at}"],
    "seqpacket:{at}": ["{at}"],
    "file:{at}": ["{at}"],
    "pipe:{at}": ["{at}.in", "{at}.out"],
    "pty:{at}": ["{at}"],
}
#: A group that is not our own, if we may change to it.
OTHER = next((group for group in os.getgroups() if group != os.getegid()), os.getegid())


@pytest.fixture(params=[0, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    try:
        yield
    finally:
        os.umask(before)


def access(made: str, path: Path) -> tuple[int, int, int]:
    status = os.stat(made.format(at=path))  # through the link to a pty
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


@pytest.mark.parametrize("chardev", MADE)
@pytest.mark.usefixtures("umask")
async def test_what_a_chardev_makes_is_private_by_default(chardev: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    async with serving(chardev.format(at=path)):
        for made in MADE[chardev]:
            assert access(made, path)[:2] == (0o600, os.geteuid())


@pytest.mark.parametrize("chardev", MADE)
@pytest.mark.usefixtures("umask")
async def test_a_chardev_takes_a_mode_an_owner_and_a_group(chardev: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    owner = 1234 if os.geteuid() == 0 else os.geteuid()
    group = 2345 if os.geteuid() == 0 else OTHER
    words = f"mode=0660,owner={owner},group={group}"
    async with serving(f"{chardev.format(at=path)},{words}"):
        for made in MADE[chardev]:
            assert access(made, path) == (0o660, owner, group)


@pytest.mark.parametrize("chardev", ["file:{at}", "pipe:{at}"])
async def test_what_exists_already_keeps_its_access(chardev: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    for made in MADE[chardev]:
        where = made.format(at=path)
        os.mkfifo(where, 0o640) if chardev.startswith("pipe") else Path(where).touch(0o640)
    async with serving(f"{chardev.format(at=path)},mode=0666"):
        for made in MADE[chardev]:
            assert access(made, path)[0] == 0o640


@pytest.mark.parametrize("chardev", MADE)
async def test_an_owner_that_we_may_not_set_is_one_clear_line(
    chardev: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    path = tmp_path / "it"
    with pytest.raises(VconfsError, match="Operation not permitted"):
        async with serving(f"{chardev.format(at=path)},owner=0"):
            pass
    assert not os.path.lexists(path)


async def test_a_rotated_file_is_made_anew_with_the_same_mode(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with serving(f"file:{path},mode=0640") as port:
        path.rename(tmp_path / "log.1")
        port.write(b"more")
        await until(lambda: path.exists() and path.read_bytes() == b"more")
        assert access("{at}", path)[0] == 0o640


async def test_a_pty_that_replaces_one_has_the_same_mode() -> None:
    chardev = parse_chardev("pty,mode=0666")
    assert isinstance(chardev, Pty)
    async with serving(chardev):
        assert stat.S_IMODE(os.stat(chardev.path).st_mode) == 0o666
