"""Asks a mounted `tree` all sorts of things: `python -m tests.fuse.probe DIR` prints the answers.

It prints one JSON object: for each function below, what its calls gave, an error as its name.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Call = Callable[[], Any]


def shown(value: Any) -> Any:
    """The part of an answer that is the same for all mounts, as text."""
    if isinstance(value, os.stat_result):
        names = "mode ino nlink uid gid size blksize blocks rdev atime_ns mtime_ns ctime_ns"
        return {name: getattr(value, f"st_{name}") for name in names.split()}
    if isinstance(value, os.statvfs_result):
        return [*value][:8]  # the ninth, f_flag, is the mount's
    return repr(value)


def answers(calls: Iterator[Call]) -> list[Any]:
    given: list[Any] = []
    for call in calls:
        try:
            given.append(shown(call()))
        except OSError as error:
            given.append(errno.errorcode[error.errno or 0])
    return given


def attributes(top: Path) -> Iterator[Call]:
    for name in ("", "readme", "link", "many", "many/entry-with-a-longish-name-3", "none"):
        yield lambda name=name: os.lstat(top / name)  # type: ignore[misc]
    yield lambda: os.stat(top / "link")
    yield lambda: os.readlink(os.fsencode(top / "link"))
    yield lambda: os.readlink(top / "readme")
    yield lambda: os.statvfs(top)
    for mode in (os.F_OK, os.R_OK, os.X_OK):
        yield lambda mode=mode: os.access(top / "readme", mode)  # type: ignore[misc]


def listings(top: Path) -> Iterator[Call]:
    yield lambda: os.listdir(top)
    yield lambda: os.listdir(top / "many")
    yield lambda: [
        (entry.name, entry.inode(), entry.is_file(), entry.stat().st_mode)
        for entry in os.scandir(top / "many")
    ]
    yield lambda: os.listdir(top / "readme")
    yield lambda: os.getxattr(top, "user.errors")


def xattrs(top: Path) -> Iterator[Call]:
    file = top / "readme"
    for name in ("user.colour", "user.empty", "user.none", "user.caller"):
        yield lambda name=name: os.getxattr(file, name)  # type: ignore[misc]
    yield lambda: os.listxattr(file)
    yield lambda: os.listxattr(top)
    yield lambda: os.setxattr(file, "user.long", b"x" * 60000)
    yield lambda: len(os.getxattr(file, "user.long"))
    yield lambda: os.setxattr(file, "user.zero", b"")
    yield lambda: os.setxattr(file, "user.long", b"new", os.XATTR_CREATE)
    yield lambda: len(os.getxattr(file, "user.long"))
    yield lambda: os.setxattr(file, "user.none", b"new", os.XATTR_REPLACE)
    yield lambda: os.getxattr(file, "user.none")
    yield lambda: os.setxattr(file, "user.fresh", b"one", os.XATTR_CREATE)
    yield lambda: os.setxattr(file, "user.fresh", b"two", os.XATTR_REPLACE)
    yield lambda: os.getxattr(file, "user.fresh")
    yield lambda: os.removexattr(file, "user.colour")
    yield lambda: os.removexattr(file, "user.colour")
    yield lambda: os.listxattr(file)


def opening(top: Path) -> Iterator[Call]:
    yield lambda: (top / "broken").read_bytes()
    yield lambda: (top / "none").read_bytes()
    yield lambda: os.open(top / "many", os.O_WRONLY)
    yield lambda: os.open(top / "link", os.O_RDONLY | os.O_NOFOLLOW)
    yield lambda: os.open(top / "readme", os.O_CREAT | os.O_EXCL)


def contents(top: Path) -> Iterator[Call]:
    file = top / "new"
    yield lambda: (top / "readme").read_bytes()[-30:]
    yield lambda: file.write_bytes(bytes(range(256)) * 20000)
    yield lambda: os.stat(file).st_size
    yield lambda: file.read_bytes() == bytes(range(256)) * 20000
    fd = os.open(file, os.O_RDWR)
    yield lambda: os.pwrite(fd, b"far", 6_000_000)
    yield lambda: os.pread(fd, 20, 5_999_990)
    yield lambda: os.lseek(fd, -5, os.SEEK_END)
    yield lambda: os.read(fd, 100)
    yield lambda: os.ftruncate(fd, 3)
    yield lambda: os.getxattr(file, "user.setattr")
    yield lambda: os.fsync(fd)
    yield lambda: os.getxattr(file, "user.synced")
    yield lambda: os.fdatasync(fd)
    yield lambda: os.getxattr(file, "user.synced")
    yield lambda: os.lseek(fd, 0, os.SEEK_DATA)
    yield lambda: os.posix_fallocate(fd, 0, 100)
    yield lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield lambda: polled(fd)
    yield lambda: os.close(fd)
    yield lambda: file.read_bytes()
    yield lambda: file.write_bytes(b"again")
    yield lambda: os.truncate(file, 2)
    yield lambda: file.read_bytes()


def polled(fd: int) -> int:
    poll = select.poll()
    poll.register(fd)
    return poll.poll(0)[0][1]


def changes(top: Path) -> Iterator[Call]:
    file = top / "changed"
    os.umask(0o027)
    yield lambda: os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o666))
    yield lambda: os.stat(file)
    yield lambda: os.chmod(file, 0o4751)
    yield lambda: os.chown(file, 12, 34)
    yield lambda: os.utime(file, ns=(1, 1_700_000_000_999_999_999))
    yield lambda: os.stat(file)
    yield lambda: os.utime(file, ns=(-(10**9) * 86400 - 1, -1))  # before 1970
    yield lambda: os.stat(file)
    yield lambda: os.utime(file)
    yield lambda: os.stat(file).st_mtime > 1.7e9
    yield lambda: os.getxattr(file, "user.setattr")


def names(top: Path) -> Iterator[Call]:
    yield lambda: os.mkdir(top / "dir", 0o777)
    yield lambda: os.mkdir(top / "dir")
    yield lambda: os.lstat(top / "dir")
    yield lambda: os.getxattr(top / "dir", "user.umask")
    yield lambda: os.mkfifo(top / "dir/fifo", 0o600)
    yield lambda: os.mknod(top / "dir/device", stat.S_IFCHR | 0o600, os.makedev(5, 300))
    yield lambda: os.lstat(top / "dir/fifo")
    yield lambda: os.lstat(top / "dir/device")
    yield lambda: os.symlink("target", top / "dir/symlink")
    yield lambda: os.readlink(top / "dir/symlink")
    yield lambda: os.link(top / "readme", top / "dir/hard")
    yield lambda: os.stat(top / "dir/hard")
    yield lambda: os.rename(top / "dir/hard", top / "moved")
    yield lambda: os.rename(top / "dir/none", top / "moved")
    yield lambda: os.unlink(top / "moved")
    yield lambda: os.unlink(top / "moved")
    yield lambda: os.rmdir(top / "dir")
    yield lambda: list(map(os.unlink, (top / "dir").iterdir()))
    yield lambda: os.rmdir(top / "dir")
    yield lambda: os.open(top / ("x" * 300), os.O_CREAT)
    yield lambda: sorted(os.listdir(top))
    yield lambda: sync_directory(top)
    yield lambda: os.getxattr(top, "user.synced")


def sync_directory(top: Path) -> None:
    fd = os.open(top, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def forgetting(top: Path) -> Iterator[Call]:
    """The kernel forgets what it has looked up, and no more than that."""
    yield lambda: len(os.listdir(top / "many"))
    yield lambda: Path("/proc/sys/vm/drop_caches").write_text("2")
    yield lambda: len(os.listdir(top / "many"))
    yield lambda: os.getxattr(top, "user.errors")


PROBES = (attributes, listings, xattrs, opening, contents, changes, names, forgetting)

if __name__ == "__main__":
    place = Path(sys.argv[1])
    json.dump({probe.__name__: answers(probe(place)) for probe in PROBES}, sys.stdout)
