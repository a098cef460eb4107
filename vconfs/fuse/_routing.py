"""pyfuse3's functions for handlers, which otherwise only speak to the session of pyfuse3.main().

Operations that were written for pyfuse3.main() call `pyfuse3.readdir_reply`,
`pyfuse3.invalidate_inode` and so on. While a session of ours runs, these names are functions that
find the session of the caller. A handler, and every task that was started by one, has its session
in a context variable. Any other caller is taken to mean the only session that runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol

import pyfuse3

from vconfs.fuse._notifier import Notifier
from vconfs.fuse._operations import ReaddirToken


class Served(Protocol):
    """A session, as far as pyfuse3's functions need one."""

    notifier: Notifier

    def terminate(self) -> None:
        """End the session."""


_running: Final[list[Served]] = []
_own: Final[ContextVar[Served | None]] = ContextVar("_own", default=None)
_stock: Final[dict[str, Any]] = {
    name: getattr(pyfuse3, name)
    for name in (
        "readdir_reply",
        "invalidate_inode",
        "invalidate_entry",
        "invalidate_entry_async",
        "notify_store",
        "terminate",
    )
}


def readdir_reply(
    token: ReaddirToken | pyfuse3.ReaddirToken,
    name: bytes,
    attr: pyfuse3.EntryAttributes,
    next_id: int,
) -> bool:
    """Add an entry to the listing of a directory. Return False if it is full.

    `token` is one of our session or of pyfuse3.main().
    """
    if isinstance(token, ReaddirToken):
        return token.add(name, attr, next_id)
    return bool(_stock["readdir_reply"](token, pyfuse3.FileNameT(name), attr, next_id))


def _notification(name: str) -> Any:
    def notify(*arguments: Any, **options: Any) -> Any:
        session = _session()
        function = getattr(session.notifier, name) if session else _stock[name]
        return function(*arguments, **options)

    return notify


def _terminate() -> None:
    session = _session()
    (session.terminate if session else _stock["terminate"])()


_OURS: Final[dict[str, Any]] = {name: _notification(name) for name in _stock} | {
    "readdir_reply": readdir_reply,
    "terminate": _terminate,
}


def _session() -> Served | None:
    """Return the session of the caller, or None if it is that of pyfuse3.main().

    Raise RuntimeError if there are several and the caller belongs to none of them.
    """
    own = _own.get()
    if own is not None:
        return own
    if pyfuse3.trio_token is not None:  # pyfuse3.main() runs as well
        return None
    if len(_running) > 1:
        raise RuntimeError("several sessions run: call this in a handler or in a task of one")
    return _running[0] if _running else None


@contextmanager
def routed(session: Served) -> Iterator[None]:
    """Make pyfuse3's functions find `session`, also from the tasks started meanwhile."""
    _running.append(session)
    token = _own.set(session)
    for name, function in _OURS.items():
        setattr(pyfuse3, name, function)
    try:
        yield
    finally:
        _own.reset(token)
        _running.remove(session)
        if not _running:
            for name, function in _stock.items():
                setattr(pyfuse3, name, function)
