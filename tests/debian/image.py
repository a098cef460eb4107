"""The disk of a Debian guest, where apt has installed our own package.

It is made from three things, each in `.cache/debian` until what it is made from changes: the root
file system of scripts/guest-debian, our package, and the disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "debian"
#: Root's file system, and its kernel.
BASE = CACHE / "base"
PACKAGES = CACHE / "packages"
DISK = CACHE / "disk.img"
#: What the guest is made and run with.
PROGRAMS = ("qemu-system-x86_64", "mmdebstrap", "mkfs.ext4", "debugfs", "dpkg-deb")

#: A user who can log in, and the password.
USER, PASSWORD = "alice", "secret"

#: What becomes of our source in the package.
_SOURCES = ("vconfs", "debian", "share", "systemd", "examples", "scripts/build-deb")
_WORKER = ROOT / "tests/support/remote/worker.py"
_WORKER_UNIT = """
[Unit]
Description=Does what the tests ask for
[Service]
ExecStart=/usr/bin/python3 /opt/worker.py /dev/ttyS1
KillMode=process
[Install]
WantedBy=multi-user.target
"""
#: Debian's own work for a machine that lives longer than a test.
_NOT_NEEDED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service"),
)


class NotMade(Exception):
    """A program that was needed failed; with its last words."""


@cache
def make() -> str:
    """Make what is missing or out of date. Return what goes wrong, or ""."""
    if os.geteuid():
        return "only root can make a Debian guest"
    try:
        for path, made_from, make_it in (
            (BASE, [ROOT / "scripts/guest-debian"], _make_base),
            (PACKAGES, list(_sources()), _make_package),
            (DISK, [Path(__file__), _WORKER, _stamp(BASE), _stamp(PACKAGES)], _make_disk),
        ):
            _bring_up_to_date(path, made_from, make_it)
    except NotMade as error:
        return str(error)
    return ""


def package() -> Path:
    """Return the path of our package."""
    (path,) = PACKAGES.glob("vconfs_*.deb")
    return path


def _sources() -> Iterator[Path]:
    for name in _SOURCES:
        path = ROOT / name
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (it for it in found if it.is_file() and "__pycache__" not in it.parts)
    yield ROOT / "pyproject.toml"


def _stamp(path: Path) -> Path:
    return path.with_name(path.name + ".made-from")


def _bring_up_to_date(path: Path, made_from: list[Path], make_it: Callable[[], None]) -> None:
    digest = hashlib.sha256(b"".join(it.read_bytes() for it in made_from)).hexdigest()
    stamp = _stamp(path)
    if path.exists() and stamp.exists() and stamp.read_text() == digest:
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    make_it()
    stamp.write_text(digest)


def _make_base() -> None:
    shutil.rmtree(BASE, ignore_errors=True)
    _run(ROOT / "scripts/guest-debian", BASE)


def _make_package() -> None:
    shutil.rmtree(PACKAGES, ignore_errors=True)
    _run(ROOT / "scripts/build-deb", PACKAGES)


def _make_disk() -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        tree = Path(folder) / "root"
        tree.mkdir()
        _run("tar", "-x", "-f", BASE / "root.tar", "-C", tree)
        _install(tree)
        _add_ours(tree)
        image = Path(folder) / "disk"
        with open(image, "wb") as file:
            file.truncate(1 << 30)
        _run("mkfs.ext4", "-q", "-F", "-d", tree, image)
        image.rename(DISK)


def _install(tree: Path) -> None:
    """Install our package as an administrator would, with the packages that it depends on."""
    deb = shutil.copy(package(), tree / "tmp")
    words = "apt-get", "install", "-y", "-q", f"/tmp/{Path(deb).name}"
    _run("chroot", tree, "env", "DEBIAN_FRONTEND=noninteractive", *words)
    os.unlink(deb)


def _add_ours(tree: Path) -> None:
    """Add a user and the worker, and leave out what no test is about."""
    _run("chroot", tree, "useradd", "-m", "-s", "/bin/bash", USER)
    _run("chroot", tree, "chpasswd", text=f"{USER}:{PASSWORD}\n")
    (tree / "etc/hostname").write_text("debian\n")
    shutil.copy(_WORKER, tree / "opt/worker.py")
    (tree / "etc/systemd/system/worker.service").write_text(_WORKER_UNIT)
    _run("systemctl", f"--root={tree}", "enable", "worker.service")
    _run("systemctl", f"--root={tree}", "mask", *_NOT_NEEDED)


def _run(*words: str | Path, text: str = "") -> None:
    done = subprocess.run(
        [*map(str, words)],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-10:])
        raise NotMade(f"{words[0]} failed ({done.returncode}):\n{last}")
