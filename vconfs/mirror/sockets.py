"""The unix sockets that hypervisors made for the channels of their guests, as ports.

Each socket that GLOB matches is a port: its file name is the port's name, and the folder above it
is the guest, with a folder of its own in the mount.

    vconfs mount --device 'sockets:/run/vm/*/*' /srv/guests
    /srv/guests/web1/by-name/org.qemu.guest_agent.0

In GLOB, `*`, `?` and `[…]` mean what they mean in a shell. Where the folder above is not the
guest's, `%g` stands for the guest's name: `sockets:/run/qemu-server/%g.qga`.

A hypervisor serves one client of a socket at a time. So vconfs connects at the first open of a port
and lets go at the last close. An open fails with EBUSY if another program has the socket: if its
backlog is full, if the connection is not accepted within a second, or if it is closed at once. It
fails with ECONNREFUSED if no process listens there. If the hypervisor closes a port that is open,
that is a hang-up, and vconfs connects again as soon as it can.

Back-pressure is as in the standard's dialect: what is not read stays in the socket. Ports come and
go with their sockets; a guest is there as long as it has one. A symlink in the place of a socket is
not followed.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Hashable, Mapping
from functools import partial
from itertools import count
from typing import Final

import trio
from attrs import define, field, frozen

from vconfs.guest.devices import SOCKETS
from vconfs.guest.port import Port
from vconfs.guest.sources import Source
from vconfs.link.draining import say_what_was_lost
from vconfs.mirror._matches import Folder, Look, Match, look
from vconfs.mirror._socket_line import SocketLine
from vconfs.mirror.guests import Guest, Guests
from vconfs.overrides import override
from vconfs.syntax.globs import Glob, parse_glob
from vconfs.syntax.printable import printable
from vconfs.syntax.url_options import split_options
from vconfs.system.inotify import Change, watching_aside
from vconfs.system.log_once import LogOnce
from vconfs.system.tasks import in_portions

log: Final = logging.getLogger(__name__)

#: What can change what the glob matches.
_CHANGES: Final = (
    Change.ATTRIBUTES
    | Change.CREATED
    | Change.DELETED
    | Change.MOVED_FROM
    | Change.MOVED_TO
    | Change.DELETED_SELF
    | Change.MOVED_SELF
)
#: Seconds from a change to the look at it: a hypervisor that starts makes several.
_SETTLING: Final = 0.1
#: The most times that new folders are looked into at once.
_ROUNDS: Final = 8
#: Seconds between looks without a change: for what inotify does not report, like a mount over a
#: folder, and for a folder that cannot be watched.
_LOOK: Final = 30.0
_LOOK_UNWATCHED: Final = 2.0


@frozen
class Sockets:
    """The DEVICE url of the sockets that a glob matches."""

    url: str
    glob: Glob

    @staticmethod
    def has(url: str) -> bool:
        """True if a DEVICE url is of this kind."""
        return url.partition(":")[0] == SOCKETS

    @classmethod
    def parse(cls, url: str) -> Sockets:
        """Parse `sockets:GLOB`; raise ValueError if it is wrong."""
        text, _ = split_options(SOCKETS, url.removeprefix(f"{SOCKETS}:"))
        return cls(url, parse_glob(SOCKETS, text))


@define(eq=False)
class _Shown:
    """A socket that is shown as a port."""

    match: Match
    guest: Guest
    port: Port
    line: SocketLine
    #: True if the last look did not find it.
    missing: bool = False


@define(eq=False)
class SocketGuests(Source):
    """Shows the sockets that a glob matches as the ports of `guests`, while it runs."""

    _sockets: Sockets
    _guests: Guests
    _shown: dict[tuple[str, str], _Shown] = field(init=False, factory=dict)
    #: What ends the watch of each folder.
    _watches: dict[Folder, trio.CancelScope] = field(init=False, factory=dict)
    _changed: trio.Event = field(init=False, factory=trio.Event)
    _unwatched: bool = field(init=False, default=False)
    _trouble: LogOnce = field(init=False, factory=lambda: LogOnce(log))
    #: What the last look has found wrong.
    _troubles: dict[str, str] = field(init=False, factory=dict)
    #: How many bytes each port had dropped when the end began.
    _before: dict[Port, int] = field(init=False, factory=dict)
    _ending: bool = field(init=False, default=False)
    _lost: trio.Event = field(init=False, factory=trio.Event)

    @override
    @property
    def url(self) -> str:
        return self._sockets.url

    @override
    @property
    def lost(self) -> trio.Event:
        """Never set: sockets can come again."""
        return self._lost

    @override
    @property
    def reason(self) -> str:
        return ""

    @override
    def reopen_files(self) -> None:
        """Do nothing: the files belong to the hypervisors."""

    @override
    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            await self._look(nursery)
            if not self._shown:
                log.warning("%s: no socket is there yet", printable(self.url))
            task_status.started()
            while not self._ending:
                with trio.move_on_after(_LOOK_UNWATCHED if self._unwatched else _LOOK):
                    await self._changed.wait()
                    await trio.sleep(_SETTLING)
                await self._look(nursery)

    # --- looking --------------------------------------------------------------------------

    async def _look(self, nursery: trio.Nursery) -> None:
        """Look until all folders on the way are watched, then show what is there."""
        for _ in range(_ROUNDS):
            self._changed = trio.Event()
            # In a thread, because a file system can be slow, or not answer at all.
            found = await trio.to_thread.run_sync(look, self._sockets.glob, abandon_on_cancel=True)
            if not await self._watch(found, nursery):
                break
        else:
            self._changed.set()  # the last folder may have changed before it was watched
        if self._ending:
            return
        for path, reason in found.troubles.items() - self._troubles.items():
            self._trouble.warning((path, reason), "%s: %s", printable(path), printable(reason))
        self._troubles = found.troubles
        await self._show(found, nursery)

    async def _watch(self, found: Look, nursery: trio.Nursery) -> bool:
        """Watch the folders that were found, and no others; return True if one is new."""
        for folder in self._watches.keys() - found.folders:
            self._watches.pop(folder).cancel()
        self._unwatched = False
        new = found.folders - self._watches.keys()
        watched = [await nursery.start(self._watch_folder, folder) for folder in new]
        return any(watched)

    async def _watch_folder(self, folder: Folder, task_status: trio.TaskStatus[bool]) -> None:
        """Report changes in a folder until it is gone. Start with True if that is possible."""
        with trio.CancelScope() as scope:
            try:
                async with watching_aside(folder.path, _CHANGES) as changes:
                    self._watches[folder] = scope
                    task_status.started(True)
                    while not changes.gone:
                        changes.happened = False
                        await changes.wait()
                        self._changed.set()
            except OSError as error:
                self._not_watched(folder, error)
                task_status.started(False)
            finally:
                if self._watches.get(folder) is scope:
                    del self._watches[folder]

    def _not_watched(self, folder: Folder, error: OSError) -> None:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):  # the look found these
            self._unwatched = True
            kind = "watch", error.errno
            text = "%s cannot be watched: %s"
            self._trouble.warning(kind, text, printable(folder.path), error.strerror)

    # --- showing --------------------------------------------------------------------------

    async def _show(self, found: Look, nursery: trio.Nursery) -> None:
        """Make the ports those that were found."""
        if not found.partial:
            keys = {(match.guest, match.name) for match in found.matches}
            missing = [shown for key, shown in self._shown.items() if key not in keys]
            await in_portions(self._miss, missing)
        await in_portions(partial(self._find, nursery), found.matches)

    def _miss(self, shown: _Shown) -> None:
        """Remove a port whose socket is missing for the second time.

        A hypervisor that starts again replaces its socket, and a look may come in between.
        """
        if shown.missing:
            self._remove(shown)
        else:
            shown.missing = True
            self._changed.set()

    def _find(self, nursery: trio.Nursery, match: Match) -> None:
        """Show a socket that was found, perhaps again."""
        key = match.guest, match.name
        shown = self._shown.get(key)
        if shown is not None and shown.match.path != match.path:
            self._remove(shown)
            shown = None
        if shown is None:
            self._shown[key] = self._add(match, nursery)
            return
        shown.missing = False
        if shown.match.identity != match.identity:
            shown.match = match
            shown.line.try_now()

    def _add(self, match: Match, nursery: trio.Nursery) -> _Shown:
        guest = self._guests.by_name.get(match.guest)
        if guest is None:
            guest = self._guests.add(match.guest)
            guest.change(True, os.path.dirname(match.path))
        manager, name = guest.manager, os.fsencode(match.name)
        port = manager.add(next(number for number in count() if number not in manager.ports))
        line = SocketLine(port, match.path, nursery)
        port.confirm_open = line.confirm_open
        manager.rename(port, name)
        port.set_options(guest.options_for(port.id, name))
        port.attach(line)
        return _Shown(match, guest, port, line)

    def _remove(self, shown: _Shown) -> None:
        guest = shown.guest
        del self._shown[shown.match.guest, shown.match.name]
        guest.manager.remove(shown.port.id)
        if not guest.manager.ports:
            guest.change(False, guest.address)
            self._guests.remove(guest)

    # --- the end: see draining.py ---------------------------------------------------------

    @override
    async def begin_ending(self) -> None:
        self._ending = True
        for guest in list(self._guests.by_name.values()):
            self._before.update((it, it.counters.dropped) for it in guest.manager.ports.values())
            await guest.manager.begin_ending(hold=True)

    @override
    def owed(self, *, readers: bool) -> Mapping[Hashable, int]:
        """Return what readers are owed: the kernel has what was written."""
        return {port: port.owed() for port in self._before if port.openers and readers}

    @override
    async def leave(self, patience: float) -> None:
        """Do nothing: the kernel has everything that was written."""

    @override
    async def say_what_was_lost(self) -> None:
        await in_portions(Port.give_up, self._before)
        lost = [
            (f"{printable(port.guest)} {os.fsdecode(port.name)!r}", port.counters.dropped - before)
            for port, before in self._before.items()
        ]
        say_what_was_lost(log, "the mount has ended", lost)
