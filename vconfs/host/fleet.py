"""Several guests at one host end, each with ports of its own.

    template = Template(["agent=unix:/run/vconfs/%g/agent.sock,cache"])
    async with open_fleet(template) as fleet:
        await fleet.add(template.guest("web1"))
        await fleet.listen(parse_listener("stream:unix:/run/vconfs/any.sock,guest=*"))

The ports of each guest are a `Host`. Guests share nothing but the process: what one of them does to
its ports or its connection, the others do not see.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Final

import trio
from attrs import define, field, frozen

from vconfs.errors import VconfsError
from vconfs.host._ceiling import Ceiling
from vconfs.host._stream_guests import Welcome
from vconfs.host.host import Host, open_host
from vconfs.host.listeners import ANY, Listener, parse_listener
from vconfs.host.port import HostPortSpec
from vconfs.host.port_files import PortFiles
from vconfs.host.spec import parse_port
from vconfs.link.draining import DRAIN_TIME
from vconfs.syntax.guest_names import fill_in, folders_of, guest_name
from vconfs.system.own_mounts import refuse_own
from vconfs.system.path_errors import cannot
from vconfs.system.tasks import open_background

log: Final = logging.getLogger(__name__)


@frozen
class Limits:
    """What the guests of a fleet may use."""

    #: How many there can be at a time.
    guests: int = 1000
    #: The most bytes of data that the ports of all guests, and of one, keep for their chardevs: the
    #: sum of their host limits. 0: any number.
    memory: int = 0
    guest_memory: int = 0


NO_LIMITS: Final = Limits()


@frozen
class GuestSpec:
    """A guest, its ports, and the listeners that are for it alone."""

    name: str
    ports: Sequence[HostPortSpec] = ()
    listeners: Sequence[Listener] = ()
    #: Folders of its paths that are made with it, and removed after it if they are empty.
    folders: Sequence[str] = ()


@frozen
class Template:
    """What the guests have in common: texts in which %g is the name of the guest, and %% is %."""

    ports: Sequence[str] = ()
    listen: Sequence[str] = ()
    dialect: str | None = None

    def guest(self, name: str) -> GuestSpec:
        """Return the guest with this name. Raise ValueError if the name or a text is wrong."""
        guest_name(name)
        texts = [text for text in (*self.ports, *self.listen) if not _has_command(text)]
        return GuestSpec(
            name,
            [parse_port(fill_in(text, name)) for text in self.ports],
            [parse_listener(fill_in(url, name), self.dialect) for url in self.listen],
            [folder for text in texts for folder in folders_of(text, name)],
        )


def _has_command(text: str) -> bool:
    return text.startswith("stream:exec:") or text.partition("=")[2].startswith("exec:")


@define(eq=False)
class _Member:
    """A guest of a fleet."""

    spec: GuestSpec
    passing: bool  # it came by itself, and may make room for others
    host: Host
    #: Set to end it, and when it has ended.
    leave: trio.Event = field(factory=trio.Event)
    left: trio.Event = field(factory=trio.Event)


class Fleet:
    """The guests of a host end; see `open_fleet`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        template: Template | None = None,
        *,
        patience: float = DRAIN_TIME,
        limits: Limits = NO_LIMITS,
        labelled: bool = True,
        files: PortFiles | None = None,
    ) -> None:
        self.template = template
        #: Set when no guest can connect any more, because the streams they came on have ended.
        self.deserted: trio.Event = trio.Event()
        self._nursery = nursery
        self._patience = patience
        self._limits = limits
        self._ceiling = Ceiling(limits.memory, "all guests")
        self._labelled = labelled
        self._files = files
        self._members: dict[str, _Member] = {}
        #: Names that are taken by guests that are starting, and by those that are ending.
        self._starting: set[str] = set()
        self._ending: set[str] = set()
        #: Folders that were made for guests, and those above them that were missing.
        self._made: set[str] = set()
        self._ended = False
        self._listening = 0

    @property
    def guests(self) -> Mapping[str, Host]:
        """The ports of each guest, by its name."""
        return {name: member.host for name, member in self._members.items()}

    def find(self, name: str | None) -> Host:
        """Return the ports of a guest, without a name those of the only one.

        Raise VconfsError if there is no such guest.
        """
        if name is None:
            if len(self._members) != 1:
                raise VconfsError(f"there are {len(self._members)} guests: say which one")
            return next(iter(self._members.values())).host
        if name not in self._members:
            raise VconfsError(f"there is no guest {name!r}")
        return self._members[name].host

    async def add(self, spec: GuestSpec) -> Host:
        """Add a guest, and start its ports and its listeners.

        Raise VconfsError if the name is taken, there are too many guests, or one cannot start.
        """
        return await self._add(spec, passing=False)

    async def add_by_name(self, name: str) -> Host:
        """Add a guest of the template. Raise VconfsError also if there is no template."""
        return await self._add(self._by_template(name), passing=False)

    async def remove(self, name: str) -> None:
        """Remove a guest when its far sides, and it, have all data, as at the end of a host end."""
        self.find(name)
        member = self._take_out(name)
        try:
            await member.host.end()
        finally:
            member.leave.set()
        await member.left.wait()

    async def welcome(self, name: str | None) -> Host:
        """Return the ports of the guest that says this name; for `Listener.serve`.

        With a template, it is added if it is not there. Raise VconfsError if it is refused.
        """
        if name is None:
            raise VconfsError("this guest end says no name: it is older than the host end")
        if self._ended:
            raise VconfsError("the host end is ending")
        if name in self._members:
            self._members[name] = member = self._members.pop(name)  # the last to make room
            return member.host
        if self.template is None:
            raise VconfsError(f"there is no guest {name[:64]!r} at this host end")
        return await self._add(self._by_template(name), passing=True)

    async def listen(
        self, listener: Listener, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve the guests that connect there, until no more can.

        Raise VconfsError if it is impossible to listen, or there is no such guest.
        """
        await self._listen(
            listener,
            self.welcome if listener.guest == ANY else self.find(listener.name),
            task_status,
        )

    def _by_template(self, name: str) -> GuestSpec:
        try:
            guest_name(name)
            if self.template is None:
                raise ValueError("there is no [template] for more guests")
            return self.template.guest(name)
        except ValueError as error:
            raise VconfsError(str(error)) from None

    async def _add(self, spec: GuestSpec, *, passing: bool) -> Host:
        name = spec.name
        if name in self._ending:
            raise VconfsError(f"guest {name!r} is being removed")
        if name in self._members or name in self._starting:
            raise VconfsError(f"there is a guest {name!r} already")
        if self._ended:
            raise VconfsError("the host end is ending")
        self._starting.add(name)
        try:
            await self._make_room()
            host: Host = await self._nursery.start(self._run, spec, passing)
        finally:
            self._starting.discard(name)
        return host

    async def _make_room(self) -> None:
        """If there are more guests than can be, end one that came by itself and has left.

        It is the one that came back least recently. Raise VconfsError if there is none.
        """
        if len(self._members) + len(self._starting) <= self._limits.guests:
            return
        for name, member in self._members.items():
            if member.passing and member.host.guest is None:
                log.info("guest %s makes room for others", name)
                self._take_out(name)
                await member.host.begin_ending(hold=True)
                member.leave.set()
                return
        raise VconfsError(f"there are {self._limits.guests} guests already")

    def _take_out(self, name: str) -> _Member:
        self._ending.add(name)
        return self._members.pop(name)

    async def _run(
        self, spec: GuestSpec, passing: bool, task_status: trio.TaskStatus[Host]
    ) -> None:
        member: _Member | None = None
        try:
            for folder in spec.folders:
                self._make_folder(folder)
            async with self._open(spec) as host, open_background() as nursery:
                member = _Member(spec, passing, host)
                for listener in spec.listeners:
                    await nursery.start(self._listen, listener, host)
                self._members[spec.name] = member
                task_status.started(host)
                await member.leave.wait()
        finally:
            for folder in reversed(spec.folders):
                self._remove_folder(folder)
            if member is not None:
                if member.leave.is_set():
                    member.host.say_what_was_lost()
                self._ending.discard(spec.name)
                member.left.set()

    @asynccontextmanager
    async def _open(self, spec: GuestSpec) -> AsyncIterator[Host]:
        with self._files.of_guest(spec.name) if self._files else nullcontext() as files:
            async with open_host(
                spec.ports,
                patience=self._patience,
                name=spec.name,
                labelled=self._labelled,
                ceiling=Ceiling(self._limits.guest_memory, f"guest {spec.name}", self._ceiling),
                files=files,
            ) as host:
                yield host

    def _make_folder(self, folder: str) -> None:
        """Make a folder, and those above it, where they are missing."""
        try:
            refuse_own(folder)
        except OSError as error:
            raise cannot(folder, error) from None
        missing: list[str] = []
        while folder and not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(missing):
            try:
                os.mkdir(path)
            except OSError as error:
                raise cannot(path, error) from None
            self._made.add(path)

    def _remove_folder(self, folder: str) -> None:
        """Remove a folder if we made it and it is empty, and then those above it."""
        while folder in self._made:
            try:
                os.rmdir(folder)
            except OSError:
                return
            self._made.discard(folder)
            folder = os.path.dirname(folder)

    async def _listen(
        self,
        listener: Listener,
        host: Host | Welcome,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self._listening += 1
        ended = False
        try:
            await listener.serve(host, task_status)
            ended = True
        finally:
            self._listening -= 1
        if ended and not self._listening:
            self.deserted.set()

    # --- an ending: see draining.py -------------------------------------------------------

    async def end(self) -> None:
        """End every guest, and take no other: deliver its data, and leave it."""
        self._ended = True
        async with trio.open_nursery() as nursery:
            for member in self._members.values():
                nursery.start_soon(member.host.end)

    def reopen_files(self) -> None:
        """Open the files of all ports again, and try now what waits to be retried."""
        for member in self._members.values():
            member.host.reopen_files()

    def say_what_was_lost(self) -> None:
        """Log how many bytes ports have dropped since they began to end, if any."""
        for member in self._members.values():
            member.host.say_what_was_lost()


@asynccontextmanager
async def open_fleet(
    template: Template | None = None,
    *,
    patience: float = DRAIN_TIME,
    limits: Limits = NO_LIMITS,
    labelled: bool = True,
    files: PortFiles | None = None,
) -> AsyncIterator[Fleet]:
    """Open a host end for several guests, which run as long as the block does.

    With a `template`, guests that are not known yet can come by themselves, and one that is not
    connected makes room for them when there are as many as the `limits` allow. The names of guests
    are in the log if it is `labelled`. Ports with the chardev mount are shown by `files`.
    """
    async with open_background() as nursery:
        yield Fleet(
            nursery,
            template,
            patience=patience,
            limits=limits,
            labelled=labelled,
            files=files,
        )
