"""How many files this program may have open."""

from __future__ import annotations

import resource


def allow_all_descriptors() -> None:
    """Let the process have as many descriptors as the system lets it take.

    The usual 1024 are there for programs that use select(2); a port on a socket takes up to four.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
