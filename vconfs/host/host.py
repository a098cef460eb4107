"""The host end: its ports, their chardevs, and the guest if there is one."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from vconfs.errors import VconfsError
from vconfs.host._attached_guest import AttachedGuest
from vconfs.host._ceiling import Ceiling
from vconfs.host._turn import Turn
from vconfs.host.chardev import describe_failure
from vconfs.host.port import HostPort, HostPortSpec
from vconfs.host.port_files import GuestFiles
from vconfs.link.draining import DRAIN_TIME, drain, say_what_was_lost
from vconfs.link.link import Link
from vconfs.link.taps import Taps
from vconfs.protocol.dialect import Host as HostDialect
from vconfs.protocol.v8 import LIMIT_MAX, NAME_MAX, PORTS_MAX
from vconfs.system.tasks import in_portions, open_background

log: Final = logging.getLogger(__name__)

#: Seconds to wait for a client that was hung up to be gone, and between checks for that. A program
#: has the time of an ending beside this.
_HANG_UP_TIME: Final = 3.0


class Host:
    """The ports of one guest; see `open_host`.

    It has one connection at a time. Ports and their chardevs stay when it goes. `name` is the
    guest's name; with `labelled`, messages in the log begin with it.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        patience: float = DRAIN_TIME,
        name: str = "",
        *,
        labelled: bool = False,
        ceiling: Ceiling | None = None,
        files: GuestFiles | None = None,
    ) -> None:
        self.name = name
        self._label = f"guest {name}" if labelled else ""
        #: How the log says that it is over with the ports.
        self._over = f"{self._label or 'the host end'} has ended"
        #: Which task may serve the guest's connection.
        self.turn: Turn = Turn(name if labelled else "")
        self._ceiling = ceiling or Ceiling()
        self._files = files
        self.ports: dict[int, HostPort] = {}
        #: How often the guest has connected.
        self.connects: int = 0
        #: The programs that watch what passes through the ports.
        self.taps: Taps[HostPort] = Taps(self.ports, lambda port: port.connected)
        #: Called with the id of a port whose bytes were dropped.
        self.on_drop: Callable[[int], None] = lambda port_id: None
        self._nursery = nursery
        self._patience = patience
        #: How many bytes each port had dropped when the host end began to end.
        self._dropped_before: dict[HostPort, int] = {}
        #: Ports whose chardev has not started yet: they are not visible, but their ids are taken.
        self._starting: dict[int, HostPort] = {}
        self._scopes: dict[HostPort, trio.CancelScope] = {}
        self._guest: AttachedGuest | None = None

    # --- ports ----------------------------------------------------------------------------

    async def add(self, spec: HostPortSpec) -> HostPort:
        """Add a port and start its chardev; the guest is told at once.

        Raise VconfsError if the id is taken or too large (for the attached guest, too), the name is
        not a valid one, the ports would keep too much, or the chardev cannot start.
        """
        port_id = self._free_id() if spec.id is None else spec.id
        self._check_id(port_id)
        _check_name(spec.name)
        port = HostPort(port_id, spec, patience=self._patience)
        port.counters.on_drop = lambda: self.on_drop(port_id)
        port.on_resize = lambda: self._port_resized(port)
        if self._files is not None:
            port.as_file = partial(self._files.serve, port)
        self._ceiling.take(spec.host_limit)
        self._starting[port_id] = port
        try:
            await self._nursery.start(self._serve, port)
        except BaseException:
            self._ceiling.give_back(spec.host_limit)
            raise
        finally:
            del self._starting[port_id]
        count = self.port_count
        self.ports[port_id] = port
        self.taps.added(port)
        if self._guest is not None:
            self._guest.port_added(port_id, self.port_count != count)
        return port

    def find(self, port: int | bytes) -> HostPort:
        """Return the port with this id or name; VconfsError if there is none or more than one."""
        if isinstance(port, int):
            return self._find(port)
        found = [
            port_id for port_id in sorted(self.ports) if port and self.ports[port_id].name == port
        ]
        name = repr(os.fsdecode(port))
        if not found:
            raise VconfsError(f"there is no port {name}")
        if len(found) > 1:
            ids = ", ".join(map(str, found))
            raise VconfsError(f"{len(found)} ports have the name {name}: use an id, one of {ids}")
        return self.ports[found[0]]

    def remove(self, port_id: int) -> None:
        """Remove a port and end its chardev; `HostPort.ended` is set when the chardev has ended.

        What its chardev has not taken is dropped; `remove_when_drained` delivers it first.
        """
        port = self._find(port_id)
        self._take_away(port)
        self._end_chardev(port)

    async def remove_when_drained(self, port_id: int) -> None:
        """Remove a port, and end its chardev when it has all that the guest sent (draining.py)."""
        port = self._find(port_id)
        before = port.counters.dropped
        try:
            drained = await self._drain(port, last=True)
            if self.ports.get(port_id) is port:
                self._take_away(port)
            if drained:  # then wait for what was still on the way
                await drain(lambda: {port: port.settle()}, self._patience)
        finally:
            self._end_chardev(port)
        await port.ended.wait()
        lost = port.counters.dropped - before
        say_what_was_lost(log, "removed a port", [(_name(port), lost)])

    def _take_away(self, port: HostPort) -> None:
        port_id = port.id
        if self._guest is not None:
            self._guest.port_leaves(port_id)
        count = self.port_count
        del self.ports[port_id]
        self._ceiling.give_back(port.spec.host_limit)
        if self._guest is not None:
            self._guest.port_removed(port_id, self.port_count != count)
        port.removed = True
        port.detach()
        self.taps.removed(port)

    def _end_chardev(self, port: HostPort) -> None:
        if scope := self._scopes.get(port):
            scope.cancel()
        else:
            port.give_up()

    async def _drain(self, port: HostPort, *, last: bool) -> bool:
        port.begin_ending(hold=True, last=last)
        return await drain(lambda: {port: port.settle()}, self._patience)

    def rename(self, port_id: int, name: bytes) -> None:
        """Change a port's name."""
        port = self._find(port_id)
        _check_name(name)
        port.name = name
        port.on_change()
        if self._guest is not None:
            self._guest.port_renamed(port)

    def configure(
        self, port_id: int, *, cache: bool | None = None, limit: int | None = None
    ) -> None:
        """Set whether the guest keeps unread data when the port is closed, and how many MiB."""
        port = self._find(port_id)
        if limit is not None and not 0 < limit <= LIMIT_MAX:
            raise VconfsError(f"a limit is 1 to {LIMIT_MAX} MiB, not {limit}")
        if cache is not None:
            port.cache = cache
        if limit is not None:
            port.limit = limit
        port.on_change()
        if self._guest is not None:
            self._guest.port_configured(port)

    def resize(self, port_id: int, cols: int, rows: int) -> None:
        """Change the size of a port's console."""
        port = self._find(port_id)
        if not (0 <= cols < 1 << 16 and 0 <= rows < 1 << 16):
            raise VconfsError(f"a console has up to 65535 columns and rows, not {cols} by {rows}")
        if port_id and not port.console:
            raise VconfsError(f"port {port_id} is not a console: only consoles have a size")
        port.resize(cols, rows)

    def _port_resized(self, port: HostPort) -> None:
        if self._guest is not None:
            self._guest.port_resized(port)

    def throttle(self, port_id: int, on: bool) -> None:
        """Take no more data from the guest on a port (THROTTLE_PORT), or take it again.

        This stays in force until it is undone, also for the next guest. What the guest has already
        sent still reaches the chardev.
        """
        self._find(port_id).throttle_by_hand(on)

    def disconnect(self, port_id: int) -> None:
        """Hang up the client at the far side of a port, so that the next one can connect.

        What the client has not taken is dropped, unless the port caches; `disconnect_when_drained`
        delivers it first. A file is opened again, and what waits to be tried again is tried now.
        Raise VconfsError if there is no client, or the chardev has no clients (an echo).
        """
        self._hang_up(self._find(port_id))()

    async def disconnect_when_drained(self, port_id: int) -> None:
        """Hang up the client at the far side of a port when it has all that the guest sent."""
        port = self._find(port_id)
        if port.reopen is not None:
            port.reopen()
            return
        hang_up, before = self._hang_up(port), port.counters.dropped
        try:
            await self._drain(port, last=False)
            if port.hang_up_client is hang_up:
                hang_up()
            with trio.move_on_after(self._patience + _HANG_UP_TIME):
                await port.wait_hung_up(hang_up)
        finally:
            if self.ports.get(port_id) is port:
                port.go_on()
        lost = port.counters.dropped - before
        say_what_was_lost(log, "hung up a client", [(_name(port), lost)])

    def _hang_up(self, port: HostPort) -> Callable[[], None]:
        hang_up = port.reopen or port.hang_up_client
        if hang_up is None:
            raise VconfsError(f"port {_describe(port)} has no client that could be hung up")
        return hang_up

    def reopen_files(self) -> None:
        """Open files again, which may have been rotated, and try now what waits to be retried."""
        for port in self.ports.values():
            if port.reopen is not None:
                port.reopen()

    # --- an ending: see draining.py -------------------------------------------------------

    async def begin_ending(self, *, hold: bool) -> None:
        """Let every port begin to end; with `hold`, take nothing more from the guest either.

        The ports begin in portions.
        """
        for port in self.ports.values():
            self._dropped_before.setdefault(port, port.counters.dropped)
        if self._files is not None:
            await self._files.begin_ending()
        await in_portions(lambda port: port.begin_ending(hold=hold), self.ports.values())

    def owed(self) -> dict[int, int]:
        """Return how many bytes each port must still deliver to a guest or client that is there.

        An ending port that owes its far side nothing stops listening to it: see `HostPort.settle`.
        """
        guest = self._guest.owed() if self._guest is not None else {}
        return {
            port_id: port.settle() + guest.get(port_id, 0) for port_id, port in self.ports.items()
        }

    async def drain(self) -> bool:
        """Begin to end, and wait until the guest and the far sides have all that is for them.

        Return False if some of them take nothing any more.
        """
        await self.begin_ending(hold=True)
        return await drain(self.owed, self._patience)

    async def end(self) -> None:
        """Drain, leave the guest, and deliver what it had sent before it knew of that."""
        drained = await self.drain()
        if self._guest is not None:
            await self._guest.leave(self._patience)
        if drained:
            await drain(self.owed, self._patience)

    def lost(self) -> list[tuple[int, int]]:
        """Return (id, bytes dropped since the port began to end) of each port."""
        before = self._dropped_before
        return [
            (port_id, port.counters.dropped - before[port])
            for port_id, port in self.ports.items()
            if port in before
        ]

    def say_what_was_lost(self) -> None:
        """Log how many bytes ports have dropped since they began to end, if any."""
        lost = [(_name(self.ports[port_id]), size) for port_id, size in self.lost()]
        say_what_was_lost(log, self._over, lost)

    @property
    def port_count(self) -> int:
        """The largest id plus one; at least 1, because port 0 always exists."""
        return max(self.ports, default=0) + 1

    def dropped(self, port_id: int) -> int:
        """Return how many bytes of a port were dropped here; 0 if there is no such port."""
        return self.ports[port_id].counters.dropped if port_id in self.ports else 0

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of the console on port 0; (0, 0) if unknown."""
        return self.ports[0].size if 0 in self.ports else (0, 0)

    # --- the guest ------------------------------------------------------------------------

    @property
    def guest(self) -> AttachedGuest | None:
        """The attached guest, or None if there is none."""
        return self._guest

    def attach(
        self, link: Link, end: HostDialect, announce_config: Callable[[], None], address: str = ""
    ) -> AttachedGuest:
        """Attach a guest whose driver has set up `link`, in place of the one before it.

        `address` says to people where it has connected.
        """
        self.detach()
        self.connects += 1
        if self._files is not None:
            self._files.guest_connected(address)
        taps = self.taps.by_port
        self._guest = AttachedGuest(self.ports, link, end, announce_config, taps)
        if self._label:
            self._guest.peer = self._label
        return self._guest

    def detach(self, reason: str = "") -> None:
        """Detach the guest, if there is one."""
        if self._guest is not None:
            self._guest.stop(reason)
            self._guest = None
            if self._files is not None:
                self._files.guest_lost()

    def close(self) -> None:
        """Detach the guest, and take no other."""
        self.turn.close()
        self.detach()
        self.taps.close()
        self._ceiling.give_all_back()

    # --- chardevs -------------------------------------------------------------------------

    async def _serve(self, port: HostPort, task_status: trio.TaskStatus[None]) -> None:
        started = False

        class Status(trio.TaskStatus[None]):
            def started(self, value: None = None) -> None:
                nonlocal started
                started = True
                task_status.started()

        failed = ""
        try:
            with trio.CancelScope() as self._scopes[port]:
                await port.spec.chardev.run(port, Status())
        except* Exception as errors:  # of any kind: the chardev may be another package's
            failed = describe_failure(errors)
            log.debug("port %s", _describe(port), exc_info=True)
            if started:
                guest = f"{self._label}: " if self._label else ""
                log.warning("%sport %s: %s", guest, _describe(port), failed)
        finally:
            del self._scopes[port]
            port.chardev_ended()
            if port.removed:
                port.give_up()
        if not started and failed:
            raise VconfsError(failed)
        if not started:
            task_status.started()

    def _free_id(self) -> int:
        taken = self.ports.keys() | self._starting.keys()
        return next(port_id for port_id in range(len(taken) + 1) if port_id not in taken)

    def _check_id(self, port_id: int) -> None:
        if other := self.ports.get(port_id) or self._starting.get(port_id):
            raise VconfsError(f"port id {port_id} is taken by {_describe(other)}")
        if not 0 <= port_id < PORTS_MAX:
            raise VconfsError(f"port id {port_id} cannot be: ids are 0 to {PORTS_MAX - 1}")
        if self._guest is not None and port_id >= self._guest.max_ports:
            raise VconfsError(
                f"port id {port_id} is too large for the guest: its ids end at"
                f" {self._guest.max_ports - 1}"
            )

    def _find(self, port_id: int) -> HostPort:
        if port_id not in self.ports:
            raise VconfsError(f"there is no port {port_id}")
        return self.ports[port_id]


def _describe(port: HostPort) -> str:
    return repr(port.name.decode(errors="replace")) if port.name else str(port.id)


def _name(port: HostPort) -> str:
    return f"port {_describe(port)}"


def _check_name(name: bytes) -> None:
    if len(name) > NAME_MAX:
        raise VconfsError(f"a port name has at most {NAME_MAX} bytes, not {len(name)}")
    if 0 in name:
        raise VconfsError("a port name has no NUL in it")


@asynccontextmanager
async def open_host(
    specs: Sequence[HostPortSpec] = (),
    *,
    patience: float = DRAIN_TIME,
    name: str = "",
    labelled: bool = False,
    ceiling: Ceiling | None = None,
    files: GuestFiles | None = None,
) -> AsyncIterator[Host]:
    """Open a host end with these ports; their chardevs run as long as the block does.

    What they have not taken at its end is dropped; `Host.drain` waits for them to take it, giving
    up after `patience` seconds without progress.
    """
    ports: list[HostPort] = []
    try:
        async with open_background() as nursery:
            host = Host(nursery, patience, name, labelled=labelled, ceiling=ceiling, files=files)
            try:
                for spec in specs:
                    await host.add(spec)
                yield host
            finally:
                host.close()
                ports += host.ports.values()
    finally:  # the chardevs have ended and have put back what they had not delivered
        for port in ports:
            port.give_up()
