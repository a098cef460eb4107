"""Logs that say a thing once, with a count, however often it happens.

What peers, programs and users do wrong is logged, and they can do it thousands of times a second.
`LogOnce` logs each kind of trouble at once, and then its count: after a minute and, while it goes
on, after two, four and so on, up to an hour. `LineLimit` bounds all lines. What was left out is
counted; `log_counts.tell_of_repeats` logs the counts in a daemon.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final
from weakref import WeakSet

from attrs import define

#: Seconds in which a kind of trouble is logged once, at first and at most.
PERIOD: Final = 60.0
_PERIOD_MAX: Final = 3600.0
#: The most kinds that one object here tells apart.
_KINDS_MAX: Final = 1000
#: Lines of one kind that pass a `LineLimit` in a period.
_LINES_MAX: Final = 20

_REPEATED: Final = "%s (%d more times)"
_PASSES: Final = "vconfs_passes"
_LEFT_OUT: Final = "%d more lines like this one were left out: %s"


@define
class _Seen:
    """A kind of trouble, since it was logged last."""

    text: str
    since: float
    period: float = PERIOD
    lines: int = 1
    more: int = 0  # that were left out


class LogOnce:
    """Logs each kind of trouble once in a period, and counts the others."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._seen: dict[Hashable, _Seen] = {}
        _counting.add(self)

    def warning(self, kind: Hashable, message: str, *arguments: object) -> None:
        """Log a warning, unless one of this kind was logged in its last period."""
        if self._is_due(kind, message % arguments):
            self._log.warning(message, *arguments)

    def exception(self, kind: Hashable, message: str, *arguments: object) -> None:
        """Log the exception that is being handled, unless one of this kind was logged."""
        if self._is_due(kind, message % arguments):
            self._log.exception(message, *arguments)

    def tell(self, *, end: bool = False) -> None:
        """Log what was counted and is a period old; at the `end`, all of it."""
        now = self._clock()
        for kind, seen in list(self._seen.items()):
            if not end and now - seen.since < seen.period:
                continue
            if seen.more:
                self._log.warning(_REPEATED, seen.text, seen.more)
                seen.since, seen.more = now, 0
                seen.period = min(2 * seen.period, _PERIOD_MAX)
            else:
                del self._seen[kind]

    def _is_due(self, kind: Hashable, text: str) -> bool:
        if kind not in self._seen and len(self._seen) >= _KINDS_MAX:
            kind, text = None, "further trouble of other kinds"
        seen = self._seen.get(kind)
        if seen is None:
            self._seen[kind] = _Seen(text, self._clock())
            return True
        seen.more += 1
        if self._clock() - seen.since >= seen.period:
            self.tell()
        return False


class LineLimit(logging.Filter):
    """Lets a bounded number of lines of each kind pass in a period, and counts the others.

    Lines are of one kind if one call makes them. The same limit may be on several handlers.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str | None], _Seen] = {}
        _counting.add(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is to be logged."""
        if record.msg == _LEFT_OUT:
            return True  # there is one for each kind
        fields = record.__dict__
        if _PASSES not in fields:  # else another handler has asked
            fields[_PASSES] = self._passes(record)
        return bool(fields[_PASSES])

    def tell(self, *, end: bool = False) -> None:
        """Log what was left out and is a period old; at the `end`, all of it."""
        now = self._clock()
        for (name, message), seen in list(self._seen.items()):
            if end or now - seen.since >= PERIOD:
                del self._seen[name, message]
                if seen.more:
                    logging.getLogger(name).warning(_LEFT_OUT, seen.more, seen.text)

    def _passes(self, record: logging.LogRecord) -> bool:
        kind = record.name, record.msg
        if kind not in self._seen and len(self._seen) >= _KINDS_MAX:
            kind = record.name, None
        seen = self._seen.get(kind)
        if seen is not None and self._clock() - seen.since >= PERIOD:
            self.tell()
            seen = None
        if seen is None:
            self._seen[kind] = _Seen("", self._clock())
            return True
        if seen.lines < _LINES_MAX:
            seen.lines += 1
            return True
        seen.text = record.getMessage()
        seen.more += 1
        return False


_counting: WeakSet[LogOnce | LineLimit] = WeakSet()


def tell_all(*, end: bool = False) -> None:
    """Log every count that is a period old; at the `end`, every count."""
    for one in list(_counting):
        one.tell(end=end)
