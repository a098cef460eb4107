"""Paths that lead into a mount of this process are refused, and nothing below it is touched."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vconfs.system.own_mounts import refuse_own, serving


def is_refused(path: object) -> bool:
    try:
        refuse_own(str(path))
    except OSError as error:
        assert error.errno == errno.EDEADLK
        return True
    return False


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "real" / "mnt"
    place.mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "up").symlink_to(f"{tmp_path}/real/mnt/../mnt/x")
    return place


@pytest.mark.parametrize(
    "path", ["real/mnt", "real/mnt/x/y", "real//./mnt/", "link/mnt/x", "up", "link/../real/mnt/x"]
)
def test_paths_into_a_mount(place: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.parents[1]
    monkeypatch.chdir(folder)
    with serving(place):
        assert is_refused(f"{folder}/{path}")
        assert is_refused(path)
    assert not is_refused(f"{folder}/{path}")


@pytest.mark.parametrize(
    "path", ["real", "real/mnt2", "real/mn", "loop/x", "none/mnt", "link/x", ""]
)
def test_other_paths(place: Path, path: str) -> None:
    with serving(place):
        assert not is_refused(f"{place.parents[1]}/{path}")


def test_nothing_below_is_looked_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    read = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: looked.append(path) or read(path))  # type: ignore[func-returns-value]
    with serving(place):
        assert is_refused(place / "x")
    assert looked[-1] == str(place.parent)
