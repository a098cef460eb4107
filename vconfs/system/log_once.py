"""Logging a repeated message once, with a count of its repeats.

Errors of peers, programs and users are logged, and can happen thousands of times a second.
`LogOnce` logs each kind of error when it first happens, and then the count of its repeats: after a
minute and, while it goes on, after two, four and so on, up to an hour. `LineLimit` bounds all
lines. Lines that were left out are counted; `log_counts.tell_of_repeats` logs the counts in a
daemon.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final
from weakref import WeakSet

from attrs import define

#: Seconds in which a kind of trouble is logged once: at first, and the longest.
PERIOD: Final = 60.0
_PERIOD_MAX: Final = 3600.0
#: The most kinds that one object here distinguishes.
_KINDS_MAX: Final = 1000
#: The most lines of one kind that pass a `LineLimit` in a period.
_LINES_MAX: Final = 20

_REPEATED: Final = "%s (%d more times)"
_PASSES: Final = "vconfs_passes"
#: The `extra` of a line that every `LineLimit` passes.
UNLIMITED: Final = {_PASSES: True}
_LEFT_OUT: Final = "%d more lines like this one were left out: %s"


@define
class _Seen:
    """The state of one kind of trouble since it was last logged."""

    text: str
    since: float
    period: float = PERIOD
    lines: int = 1
    more: int = 0  # lines that were left out


class LogOnce:
    """A logger that logs each kind of trouble once in a period, and counts the repeats."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._seen: dict[Hashable, _Seen] = {}
        _counting.add(self)

    def warning(self, kind: Hashable, message: str, *arguments: object) -> None:
        """Log a warning, unless one of this kind was logged in the current period."""
        if self._is_due(kind, message % arguments):
            self._log.warning(message, *arguments)

    def exception(self, kind: Hashable, message: str, *arguments: object) -> None:
        """Log the current exception, unless one of this kind was logged in the current period."""
        if self._is_due(kind, message % arguments):
            self._log.exception(message, *arguments)

    def tell(self, *, end: bool = False) -> None:
        """Log the counts that are a period old, or all counts if `end` is true."""
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
    """A filter that passes a bounded number of lines of each kind in a period, and counts the rest.

    Lines with the same logger and message template are of one kind. Several handlers may share one
    limit.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str | None], _Seen] = {}
        _counting.add(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is to be logged."""
        if record.msg == _LEFT_OUT:
            return True  # there is one line like this for each kind
        fields = record.__dict__
        if _PASSES not in fields:  # otherwise another handler has decided
            fields[_PASSES] = self._passes(record)
        return bool(fields[_PASSES])

    def tell(self, *, end: bool = False) -> None:
        """Log the counts that are a period old, or all counts if `end` is true."""
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
    """Log every count that is a period old, or every count if `end` is true."""
    for one in list(_counting):
        one.tell(end=end)
