"""Mounting and unmounting a FUSE file system.

root mounts with mount(2). Other users need the set-uid helper fusermount3, which passes the opened
FUSE device over a socket. A mountpoint /dev/fd/N means that another program has mounted the file
system already, and that descriptor N is the device.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import select
import shutil
import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from enum import IntFlag
from pathlib import Path
from typing import Final

from attrs import define

from vconfs.errors import VconfsError
from vconfs.system.mountinfo import Mounted, parse_mounts, read_mounts

FILESYSTEM: Final = "vconfs"
_TYPE: Final = f"fuse.{FILESYSTEM}"
_DEVICE: Final = "/dev/fuse"
_MS_NOSUID, _MS_NODEV = 2, 4
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
#: The device number of /dev/fuse.
_DEVICE_NUMBER: Final = os.makedev(10, 229)

_libc = ctypes.CDLL(None, use_errno=True)


class MountFlag(IntFlag):
    """A flag of mount(2) that a caller can add; its name in fstab is in lower case."""

    NONE = 0
    RO = 1
    NOEXEC = 8
    SYNC = 16
    DIRSYNC = 128
    NOATIME = 1024
    NODIRATIME = 2048


class MountError(VconfsError):
    """A file system could not be mounted, or was unmounted too early."""


@define
class Mount:
    """A mounted file system, with its FUSE device and its mountpoint."""

    device: int
    #: None if another program has mounted it.
    mountpoint: Path | None
    #: The file system's device number, like "0:42".
    number: str = ""

    def unmount(self) -> None:
        """Unmount it, even while files in it are open. Further calls do nothing."""
        mountpoint, self.mountpoint = self.mountpoint, None
        if mountpoint is not None and self._is_at(mountpoint):
            with suppress(OSError):
                unmount(mountpoint, lazy=True)

    def _is_at(self, place: Path) -> bool:
        """True if the mount at `place` is still ours, and not that of another program.

        The kernel reuses the number once the file system has ended. The device then reports an
        error, but it also does so after an abort, which leaves our dead mount in place.
        """
        if _topmost(place) != (self.number, _TYPE):
            return False
        device = select.poll()
        device.register(self.device, 0)
        return not device.poll(0) or _is_dead(place)

    def close(self) -> None:
        """Unmount, and close the FUSE device. Further calls do nothing."""
        self.unmount()
        device, self.device = self.device, -1
        if device >= 0:
            os.close(device)


def mount(
    mountpoint: Path,
    *,
    source: str = FILESYSTEM,
    allow_other: bool = False,
    nonempty: bool = False,
    flags: MountFlag = MountFlag.NONE,
) -> Mount:
    """Mount on a folder, after unmounting a dead vconfs mount that is there.

    The folder must be empty unless `nonempty` is true. The flags nosuid and
    nodev are always set. Raise MountError if that fails; then nothing is left mounted.
    """
    if (inherited := inherited_device(mountpoint)) is not None:
        return Mount(_adopt(inherited), None)
    place = Path(os.path.realpath(mountpoint))
    _clear_dead_mount(place)
    _check_place(place, nonempty)
    by_root = os.geteuid() == 0
    device = (
        _mount_as_root(place, source, allow_other, flags)
        if by_root
        else _mount_by_helper(place, source, allow_other, flags)
    )
    os.set_blocking(device, False)
    return Mount(device, place, _topmost(place)[0])


def place_of(mountpoint: Path) -> Path | None:
    """Return a mountpoint without links in it, or None if another program mounts and unmounts."""
    if inherited_device(mountpoint) is not None:
        return None
    return Path(os.path.realpath(mountpoint))


def inherited_device(mountpoint: Path) -> int | None:
    """Return N if the mountpoint is /dev/fd/N, so that another program mounts and unmounts."""
    match = re.fullmatch(r"/dev/fd/([0-9]+)", str(mountpoint))
    return int(match[1]) if match else None


def unmount(mountpoint: Path, *, lazy: bool = False, abort: bool = False) -> None:
    """Unmount; with `lazy` even while it is in use. Raise OSError if that fails.

    With `abort`, programs that wait for the daemon get ECONNABORTED, if we are root.
    """
    if os.geteuid() == 0:
        flags = (_MNT_DETACH if lazy else 0) | (_MNT_FORCE if abort else 0)
        if _libc.umount2(os.fsencode(mountpoint), flags):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(mountpoint))
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EPERM, done.stderr.strip() or "fusermount3 failed", str(mountpoint))


def is_mounted(place: Path) -> bool:
    """True if a vconfs file system is mounted at `place`, alive or dead."""
    return _is_among(read_mounts(), place)


def listed(mountinfo: bytes, place: Path) -> bool:
    """True if the text of /proc/self/mountinfo has a vconfs file system at `place`."""
    return _is_among(parse_mounts(mountinfo), place)


def _is_among(mounts: Iterable[Mounted], place: Path) -> bool:
    wanted = os.fsencode(place)
    return any(mounted.place == wanted and mounted.type == _TYPE for mounted in mounts)


def _topmost(place: Path) -> tuple[str, str]:
    wanted = os.fsencode(place)
    found = [mounted for mounted in read_mounts() if mounted.place == wanted]
    return (found[-1].number, found[-1].type) if found else ("", "")


def _adopt(device: int) -> int:
    try:
        if os.fstat(device).st_rdev != _DEVICE_NUMBER:
            raise MountError(
                f"/dev/fd/{device} is not {_DEVICE}: the program that mounts must open that one"
            )
        os.set_blocking(device, False)
        os.set_inheritable(device, False)
    except OSError as error:
        raise MountError(f"/dev/fd/{device}: {error.strerror}: was it inherited?") from None
    return _beyond_standard_streams(device)


def _beyond_standard_streams(device: int) -> int:
    """Return the device under another number if it is standard input, output or error.

    The standard stream becomes /dev/null, because programs inherit it and it is replaced later.
    """
    if device > 2:
        return device
    moved = fcntl.fcntl(device, fcntl.F_DUPFD_CLOEXEC, 3)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, device)
    os.close(null)
    return moved


def _clear_dead_mount(place: Path) -> None:
    """Unmount the mount of a vconfs process that was killed."""
    while is_mounted(place) and _is_dead(place):
        try:
            unmount(place, lazy=True)
        except OSError as error:
            raise MountError(
                f"{place} has a dead vconfs mount that cannot be cleared ({error.strerror}):"
                f" `umount -l {place}` as root"
            ) from None


def _is_dead(place: Path) -> bool:
    """True if no process serves the mount any more.

    statfs is used because the kernel may answer a stat from its cache.
    """
    try:
        os.statvfs(place)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def _check_place(place: Path, nonempty: bool) -> None:
    if is_mounted(place):
        raise MountError(f"{place} has a vconfs mount already: `vconfs umount {place}` first")
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        raise MountError(f"{place} does not exist: make the folder first") from None
    except NotADirectoryError:
        raise MountError(f"{place} is not a folder") from None
    except OSError as error:
        raise MountError(f"{place}: {error.strerror}") from None
    if names and not nonempty:
        raise MountError(f"{place} is not empty: mount on an empty folder")


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MountError(
            f"there is no {_DEVICE}: load the kernel's module, `modprobe fuse`"
        ) from None
    except PermissionError:
        raise MountError(
            f"no permission to open {_DEVICE}: as root, `chmod 666 {_DEVICE}`;"
            " a container must be given the device"
        ) from None
    except OSError as error:
        raise MountError(
            f"{_DEVICE}: {error.strerror}: is the kernel's fuse module there?"
        ) from None


def _mount_as_root(place: Path, source: str, allow_other: bool, flags: MountFlag) -> int:
    device = _open_device()
    options = (
        f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        ",default_permissions" + (",allow_other" if allow_other else "")
    )
    failed = _libc.mount(
        source.encode(),
        os.fsencode(place),
        _TYPE.encode(),
        _MS_NOSUID | _MS_NODEV | flags,
        options.encode(),
    )
    if failed:
        code = ctypes.get_errno()
        os.close(device)
        hint = ": are you root of this mount namespace?" if code == errno.EPERM else ""
        raise MountError(f"cannot mount on {place}: {os.strerror(code)}{hint}")
    return device


def _mount_by_helper(place: Path, source: str, allow_other: bool, flags: MountFlag) -> int:
    os.close(_open_device())  # the helper has our permissions: a failure here has a clear error
    helper = shutil.which("fusermount3")
    if helper is None:
        raise MountError("fusermount3 is not installed: it is in the package fuse3")
    name = re.sub(r"([\\,])", r"\\\1", source)  # both are special in a list of options
    options = ",".join(("nosuid", "nodev", *(str(flag.name).lower() for flag in flags)))
    options += f",fsname={name},subtype={FILESYSTEM},default_permissions"
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
            reason = re.sub(r"^\S*fusermount3: ", "", why[-1])
            raise MountError(f"cannot mount on {place}: {reason}")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        with suppress(OSError):
            unmount(place, lazy=True)
        raise MountError(f"cannot mount on {place}: fusermount3 gave no device")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]
