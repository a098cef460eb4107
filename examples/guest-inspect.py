#!/usr/bin/env python3
"""Lets the host inspect a guest: its system, its file systems and its packages.

    guest:  guest-inspect.py /mnt/vcon/by-name/org.example.inspect
    host:   echo system | socat -t 5 - UNIX-CONNECT:/run/inspect.sock

Each line from the host is a question, "system", "filesystems" or "packages"; the answer is one
line of JSON. It needs only Python's standard library.
"""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable

#: File systems without files on a disk.
_VIRTUAL = {"proc", "sysfs", "devpts", "devtmpfs", "cgroup", "cgroup2", "mqueue", "tracefs", "bpf"}
#: The errors of a port that was removed, or whose mount has ended.
_GONE = {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTCONN}


def system() -> dict[str, object]:
    """Return the system's name and version, from os-release and uname."""
    release = platform.freedesktop_os_release()
    return {
        "id": release.get("ID"),
        "version": release.get("VERSION_ID"),
        "name": release.get("PRETTY_NAME"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "hostname": platform.node(),
    }


def filesystems() -> list[dict[str, object]]:
    """Return the mounted file systems with their sizes in bytes."""
    found = []
    with open("/proc/self/mounts") as table:
        for line in table:
            source, path, kind, *_ = line.encode().decode("unicode_escape").split(" ")
            if kind in _VIRTUAL or kind.startswith("fuse"):
                continue  # a fuse mount may be ours, or may not answer
            try:
                about = os.statvfs(path)
            except OSError:
                continue
            size, free = about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize
            found.append({"path": path, "type": kind, "source": source, "size": size, "free": free})
    return found


def packages() -> dict[str, str]:
    """Return the version of each package, by dpkg or rpm."""
    for command in (
        ["dpkg-query", "-W", "-f", "${Package}\t${Version}\n"],
        ["rpm", "-qa", "--qf", "%{NAME}\t%{VERSION}-%{RELEASE}\n"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return dict(line.split("\t", 1) for line in done.stdout.splitlines())
    return {}


QUESTIONS: dict[str, Callable[[], object]] = {
    "system": system,
    "filesystems": filesystems,
    "packages": packages,
}


def answer(question: str) -> object:
    """Return the answer to a question; an error is an answer, too."""
    if question not in QUESTIONS:
        return {"error": f"unknown question {question[:80]!r}: ask {', '.join(QUESTIONS)}"}
    try:
        return QUESTIONS[question]()
    except OSError as error:
        return {"error": str(error)}


def serve(port: io.FileIO) -> None:
    """Answer the questions of one host, until it hangs up."""
    rest = b""
    while data := port.read(4096):
        *lines, rest = (rest[-4096:] + data).split(b"\n")
        for line in lines:
            text = json.dumps(answer(line.decode(errors="replace").strip())) + "\n"
            left = memoryview(text.encode())
            while left:
                left = left[port.write(left) :]


def main() -> None:
    """Serve one host after the other, until the port is removed or unmounted.

    Mount with -o wait: reading then waits for a host; without it, this would be a busy loop.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    if len(sys.argv) != 2:
        sys.exit("usage: guest-inspect.py PORT")
    try:
        port = io.FileIO(sys.argv[1], "r+")
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error.strerror}")
    try:
        while True:
            serve(port)
            # Reopen it before closing it: the last close would drop questions of the next host.
            port, last = io.FileIO(sys.argv[1], "r+"), port
            last.close()
    except OSError as error:
        if error.errno not in _GONE:
            sys.exit(f"{sys.argv[1]}: {error.strerror}")


if __name__ == "__main__":
    main()
