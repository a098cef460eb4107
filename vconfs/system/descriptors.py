"""How many files this program may have open."""

from __future__ import annotations

import resource

#: What the soft limit was before we raised it.
_usual_limit: int | None = None


def allow_all_descriptors() -> None:
    """Let the process have as many descriptors as the system lets it take.

    The usual 1024 are there for programs that use select(2); a port on a socket takes up to four.
    """
    global _usual_limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _usual_limit = soft


def with_usual_limit(command: str) -> str:
    """Return a shell command that runs `command` with the limit that there was before.

    A program that uses select(2) cannot take more, and others close all that there could be.
    """
    return command if _usual_limit is None else f"ulimit -S -n {_usual_limit}; {command}"
