"""Measures for how long something has been true, in sum."""

from __future__ import annotations

import time

from attrs import define


@define
class Stopwatch:
    """The sum of the times for which a state was on."""

    _total: float = 0.0
    #: When the state became true; None if it is not true.
    _since: float | None = None

    def set(self, on: bool) -> None:
        """Note that the state is now on, or off."""
        if on == (self._since is not None):
            return
        now = time.monotonic()
        if self._since is not None:
            self._total += now - self._since
        self._since = now if on else None

    @property
    def seconds(self) -> float:
        """Seconds for which the state was on, up to now."""
        return self._total if self._since is None else self._total + time.monotonic() - self._since
