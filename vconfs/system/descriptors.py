"""Descriptors: closing them, room to write, and the limit of this process and its programs."""

from __future__ import annotations

import os
import resource
import select
from collections.abc import Iterator
from contextlib import contextmanager

#: The soft limit before we raised it.
_usual_limit: int | None = None


@contextmanager
def owned(descriptor: int) -> Iterator[int]:
    """Close `descriptor` at the end of the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def has_room(descriptor: int) -> bool:
    """True if a write to a descriptor would take something now."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(mask & select.POLLOUT for _, mask in poll.poll(0))


def allow_all_descriptors() -> None:
    """Raise this process's limit of descriptors as far as the system allows.

    The usual limit of 1024 is meant for programs that use select(2); a port on a socket needs up
    to four descriptors.
    """
    global _usual_limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _usual_limit = soft


def with_usual_limit(command: str) -> str:
    """Return a shell command that runs `command` with the limit from before.

    Programs that use select(2) fail with more, and some close every possible descriptor.
    """
    return command if _usual_limit is None else f"ulimit -S -n {_usual_limit}; {command}"
