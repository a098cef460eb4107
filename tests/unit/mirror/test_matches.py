"""Which sockets a glob matches, whose they are, and what is reported."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.hypervisor import channel
from vconfs.mirror import _matches
from vconfs.mirror._matches import Look, look
from vconfs.syntax.globs import parse_glob


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def sockets(stack: ExitStack, folder: Path, *names: str) -> None:
    for name in names:
        stack.enter_context(channel(folder / name))


def looked(folder: Path, pattern: str) -> Look:
    return look(parse_glob("sockets", f"{folder}/{pattern}"))


def found(folder: Path, pattern: str) -> list[str]:
    return [f"{match.guest}: {match.name}" for match in looked(folder, pattern).matches]


def watched(folder: Path, pattern: str) -> set[str]:
    return {found.path for found in looked(folder, pattern).folders}


def test_the_folder_above_is_the_guest(stack: ExitStack, tmp_path: Path) -> None:
    sockets(stack, tmp_path, "web1/b", "web1/a", "web 2/a", ".old/a", "web1/.hidden")
    assert found(tmp_path, "*/*") == ["web 2: a", "web1: a", "web1: b"]
    assert found(tmp_path, "web1/b") == ["web1: b"]
    assert found(tmp_path, "web?/*") == ["web1: a", "web1: b"]
    assert found(tmp_path, "*/none") == []


def test_the_mark_is_the_guest(stack: ExitStack, tmp_path: Path) -> None:
    sockets(stack, tmp_path, "100.qga", "100.serial0", "101.qga")
    assert found(tmp_path, "%g.qga") == ["100: 100.qga", "101: 101.qga"]
    assert found(tmp_path, "%g.*") == ["100: 100.qga", "100: 100.serial0", "101: 101.qga"]
    sockets(stack, tmp_path, "vm/web/sockets/a", "vm/db/sockets/a")
    assert found(tmp_path, "vm/%g/*/a") == ["db: a", "web: a"]


def test_what_cannot_be_a_port_is_reported(stack: ExitStack, tmp_path: Path) -> None:
    sockets(stack, tmp_path, "web/a", ".old/a")
    (tmp_path / "web/log").touch()
    (tmp_path / "web/folder").mkdir()
    (tmp_path / "web/link").symlink_to("a")
    it = looked(tmp_path, "*/*")
    assert [match.name for match in it.matches] == ["a"]
    assert it.troubles == {
        str(tmp_path / "web" / name): "not a socket" for name in ("log", "folder", "link")
    }
    assert looked(tmp_path, ".*/a").troubles == {
        f"{tmp_path}/.old/a": "a guest cannot have the name '.old'"
    }


def test_two_guests_with_one_name_are_not_mixed(stack: ExitStack, tmp_path: Path) -> None:
    sockets(stack, tmp_path, "a/web/x", "b/web/x", "b/web/y", "b/db/x")
    it = looked(tmp_path, "*/*/*")
    assert [match.path for match in it.matches] == [
        str(tmp_path / path) for path in ("a/web/x", "b/db/x")
    ]
    reason = f"{tmp_path}/a/web is web already: name the guests with %g"
    assert it.troubles == {str(tmp_path / path): reason for path in ("b/web/x", "b/web/y")}
    assert found(tmp_path, "%g/*/*") == ["a: x", "b: x", "b: y"]


def test_the_folders_on_the_way_are_watched(stack: ExitStack, tmp_path: Path) -> None:
    assert watched(tmp_path, "vm/*/x") == {str(tmp_path)}
    (tmp_path / "vm").mkdir()
    assert watched(tmp_path, "vm/*/x") == {f"{tmp_path}/vm"}
    sockets(stack, tmp_path, "vm/web/x")
    assert watched(tmp_path, "vm/*/x") == {f"{tmp_path}/vm", f"{tmp_path}/vm/web"}


def test_how_many_are_shown_is_limited(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets(stack, tmp_path, *(f"{guest}/{name}" for guest in "abc" for name in "xyz"))
    monkeypatch.setattr(_matches, "_NAMES_MAX", 3)
    monkeypatch.setattr(_matches, "SOCKETS_MAX", 5)
    it = looked(tmp_path, "*/*")
    assert len(it.matches) == 5
    assert list(it.troubles.values()) == ["more than 5 sockets match"]
    monkeypatch.setattr(_matches, "_NAMES_MAX", 2)
    it = looked(tmp_path, "*/*")
    assert len(it.matches) == 4, "no guest can use up the places of the others"
    assert set(it.troubles.values()) == {"more than 2 names match there"}
    monkeypatch.setattr(_matches, "FOLDERS_MAX", 1)
    it = looked(tmp_path, "*/x")
    assert "more than 1 folders match" in it.troubles.values()
    for number in range(70):
        (tmp_path / f"a/not{number:03}").touch()
    monkeypatch.setattr(_matches, "_NAMES_MAX", 1000)
    assert len(looked(tmp_path, "a/not*").troubles) == 64


def test_a_folder_that_we_may_not_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("web"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    it = looked(tmp_path, "*/*")
    assert it.troubles == {f"{tmp_path}/web": "Permission denied"}
    assert str(tmp_path) in watched(tmp_path, "*/*"), "who may read it can change"
