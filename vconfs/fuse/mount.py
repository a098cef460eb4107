"""Mounting and unmounting a FUSE file system.

root mounts by mount(2); others by the set-uid helper fusermount3, which hands the opened FUSE
device over a socket. A mountpoint /dev/fd/N means that somebody else has mounted already, and
that descriptor N is the device.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define

FILESYSTEM: Final = "vconfs"
_TYPE: Final = f"fuse.{FILESYSTEM}"
_DEVICE: Final = "/dev/fuse"
_MS_NOSUID, _MS_NODEV = 2, 4
_MNT_DETACH: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)


class MountError(OSError):
    """Mounting failed; the text is one line that names the thing and the way out."""

    def __str__(self) -> str:
        return str(self.args[0])


@define
class Mount:
    """A mounted file system: its FUSE device, and how to take it away again."""

    device: int
    #: None: somebody else has mounted it.
    mountpoint: Path | None

    def unmount(self) -> None:
        """Take the mount away from its place, even while files in it are open; once."""
        mountpoint, self.mountpoint = self.mountpoint, None
        if mountpoint is not None:
            with suppress(OSError):  # somebody else was faster
                unmount(mountpoint, lazy=True)

    def close(self) -> None:
        """Unmount, and end what is left of the connection; once."""
        self.unmount()
        device, self.device = self.device, -1
        if device >= 0:
            os.close(device)


def mount(mountpoint: Path, *, source: str = FILESYSTEM, allow_other: bool = False) -> Mount:
    """Mount on an empty folder; what is left of a dead vconfs mount there is cleared away.

    Raises MountError, and then has left nothing mounted.
    """
    if match := re.fullmatch(r"/dev/fd/([0-9]+)", str(mountpoint)):
        return Mount(_adopt(int(match[1])), None)
    place = Path(os.path.abspath(mountpoint))
    _clear_dead_mount(place)
    _check_place(place)
    by_root = os.geteuid() == 0
    device = (
        _mount_as_root(place, source, allow_other)
        if by_root
        else _mount_by_helper(place, source, allow_other)
    )
    os.set_blocking(device, False)
    return Mount(device, place)


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount; `lazy`: even while it is in use. OSError."""
    if os.geteuid() == 0:
        if _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH if lazy else 0):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(mountpoint))
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EPERM, done.stderr.strip() or "fusermount3 failed", str(mountpoint))


def is_mounted(place: Path) -> bool:
    """Whether a vconfs file system is mounted there, alive or dead."""
    return listed(Path("/proc/self/mountinfo").read_bytes(), place)


def listed(mountinfo: bytes, place: Path) -> bool:
    """Whether the text of /proc/self/mountinfo names a vconfs file system at this place."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(b" - ")
        where = fields.split(b" ")[4].decode("unicode_escape").encode("latin-1")
        if where == os.fsencode(place) and rest.startswith(_TYPE.encode() + b" "):
            return True
    return False


def _adopt(device: int) -> int:
    try:
        os.set_blocking(device, False)
    except OSError as error:
        raise MountError(f"/dev/fd/{device}: {error.strerror}") from None
    return device


def _clear_dead_mount(place: Path) -> None:
    """Unmount what a vconfs that was killed has left: each access of it fails with ENOTCONN."""
    try:
        os.stat(place)
    except OSError as error:
        if error.errno == errno.ENOTCONN and is_mounted(place):
            with suppress(OSError):
                unmount(place, lazy=True)


def _check_place(place: Path) -> None:
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        raise MountError(f"{place} does not exist: make the folder first") from None
    except NotADirectoryError:
        raise MountError(f"{place} is not a folder") from None
    except OSError as error:
        raise MountError(f"{place}: {error.strerror}") from None
    if is_mounted(place):
        raise MountError(f"{place} has a vconfs mount already: `vconfs umount {place}` first")
    if names:
        raise MountError(f"{place} is not empty: mount on an empty folder")


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MountError(
            f"there is no {_DEVICE}: load the kernel's module, `modprobe fuse`"
        ) from None
    except PermissionError:
        raise MountError(f"no permission to open {_DEVICE}") from None
    except OSError as error:
        raise MountError(
            f"{_DEVICE}: {error.strerror}: is the kernel's fuse module there?"
        ) from None


def _mount_as_root(place: Path, source: str, allow_other: bool) -> int:
    device = _open_device()
    options = (
        f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        ",default_permissions" + (",allow_other" if allow_other else "")
    )
    failed = _libc.mount(
        source.encode(),
        os.fsencode(place),
        _TYPE.encode(),
        _MS_NOSUID | _MS_NODEV,
        options.encode(),
    )
    if failed:
        code = ctypes.get_errno()
        os.close(device)
        hint = ": are you root of this mount namespace?" if code == errno.EPERM else ""
        raise MountError(f"cannot mount on {place}: {os.strerror(code)}{hint}")
    return device


def _mount_by_helper(place: Path, source: str, allow_other: bool) -> int:
    if not Path(_DEVICE).exists():
        _open_device()  # for its error
    helper = shutil.which("fusermount3")
    if helper is None:
        raise MountError("fusermount3 is not installed: it is in the package fuse3")
    options = f"nosuid,nodev,fsname={source},subtype={FILESYSTEM},default_permissions"
    if allow_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [helper, "-o", options, "--", str(place)],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            capture_output=True,
            text=True,
            check=False,
        )
        theirs.close()
        if done.returncode:
            why = done.stderr.strip().splitlines() or ["fusermount3 failed"]
            raise MountError(f"cannot mount on {place}: {why[-1].removeprefix('fusermount3: ')}")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise MountError(f"cannot mount on {place}: fusermount3 gave no device")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]
