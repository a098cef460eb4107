"""A chardev of another package, installed beside vconfs, in a mount of its own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.packages import BUS, make_package

from .test_commands import folder, vconfs

__all__ = ["folder"]


@pytest.fixture
def site(tmp_path: Path) -> str:
    """Where the package is installed: what PYTHONPATH names."""
    path = tmp_path / "site"
    path.mkdir()
    make_package(path, BUS)
    return str(path)


def test_a_port_is_joined_to_it(folder: Path, site: str) -> None:
    vconfs("mount", "--port", "news=bus:sport,cache", str(folder), PYTHONPATH=site)
    with open(folder / "by-name/news", "r+b", buffering=0) as port:
        assert port.readline() == b"welcome to sport\n"
        port.write(b"hello\n")
        assert port.readline() == b"HELLO\n"
    vconfs("umount", str(folder))


@pytest.mark.parametrize(
    ("spec", "code", "error"),
    [
        ("x=bus:nowhere", 1, "bus: there is no topic nowhere: choose another"),
        ("x=bus", 2, "bus needs a topic: bus:TOPIC (see vconfs mount --help)"),
        ("x=bsu:a", 2, "unknown chardev 'bsu': it is one of bus, connect, echo, "),
    ],
)
def test_its_errors_are_shown_like_ours(
    folder: Path, site: str, spec: str, code: int, error: str
) -> None:
    assert error in vconfs("mount", "--port", spec, str(folder), code=code, PYTHONPATH=site)


def test_a_chardev_that_cannot_be_loaded_is_named(folder: Path, site: str) -> None:
    (Path(site) / "tiny_bus.py").write_text("import nosuchmodule")
    error = vconfs("mount", "--port", "x=bus:a", str(folder), code=2, PYTHONPATH=site)
    assert "chardev 'bus' of package tiny-bus is broken: ModuleNotFoundError: No module" in error
