"""An open file of a port."""

from __future__ import annotations

from attrs import frozen


@frozen(eq=False)
class Opener:
    """One open file of a port, and the process that opened it."""

    pid: int
    command: bytes = b""  # the process's name at the open, safe to print
    can_read: bool = True

    @property
    def reads(self) -> bool:
        """True if this opener may read what is queued in the port."""
        return self.can_read

    def owed(self) -> int:
        """Return how many bytes this opener has taken and not passed on (a pty beside the port)."""
        return 0
