"""DEVICE urls: which device the guest end uses, and how it is reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

import trio
from attrs import define, field, frozen

from vconfs.device.embedded import open_embedded
from vconfs.device.pci import DIALECT as PCI_DIALECT
from vconfs.device.qtest.machine import QtestAddress, open_qtest
from vconfs.device.stream import open_stream
from vconfs.device.vfio import VfioAddress, open_bound_vfio, open_vfio
from vconfs.device.vhost_user import open_vhost_user, parse_path
from vconfs.guest._kernel import open_kernel
from vconfs.guest.driver import Driver, drive
from vconfs.guest.ports import PortManager
from vconfs.host.control_socket import serve_control
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPortSpec
from vconfs.link.draining import DRAIN_TIME
from vconfs.link.link import OpenDevice
from vconfs.overrides import override
from vconfs.protocol.dialect import DIALECTS
from vconfs.streams.url import DIALECT as STREAM_DIALECT
from vconfs.streams.url import parse_stream_address
from vconfs.syntax.guest_names import guest_name
from vconfs.system.tasks import open_background

EMBEDDED: Final = "embedded"
KERNEL: Final = "kernel"
#: The ports of many guests: see vconfs/mirror/sockets.py.
SOCKETS: Final = "sockets"


class Joint(Protocol):
    """A connection of ports to a device, until the device is lost."""

    @property
    def stopped(self) -> trio.Event:
        """Set when nothing more will come."""

    @property
    def reason(self) -> str:
        """Why nothing more will come."""

    async def begin_ending(self) -> None:
        """Accept nothing more from either side: see draining.py."""

    def owed(self) -> Mapping[int, int]:
        """Return, by port, how many bytes are still owed to the device or to our own host end."""

    async def leave(self, patience: float) -> None:
        """Tell the device that we leave, and wait until it has taken everything: see `Link.leave`.

        Called after `begin_ending`, when nothing is owed any more or the wait for it is over.
        """

    def dropped_by_host(self) -> Mapping[int, int]:
        """Return how many bytes a host end in this process has dropped since then, by port."""

    @property
    def tells_all_ports(self) -> bool:
        """True if all ports are known by now; False if they come one by one."""


#: Opens a device. The arguments are the url after the scheme, and the dialect if the user chose
#: one. Raises ValueError if the url is malformed, VconfsError if the device cannot be used.
Open = Callable[[str, str | None], AbstractAsyncContextManager[OpenDevice]]


class Device(Protocol):
    """A device that the guest end can open, and open again after it was lost."""

    @property
    def url(self) -> str:
        """The url that the user gave."""

    def open(self, manager: PortManager) -> AbstractAsyncContextManager[Joint]:
        """Connect the ports of `manager` to it while the block runs; may raise VconfsError."""

    def reopen_files(self) -> None:
        """Reopen the files that its ports write to, if the host end is in this process."""


@frozen
class _Both(Joint):
    """Both ends in this process."""

    host: Host
    driver: Driver
    manager: PortManager

    @override
    @property
    def tells_all_ports(self) -> bool:
        return self.driver.tells_all_ports

    @override
    @property
    def stopped(self) -> trio.Event:
        return self.driver.stopped

    @override
    @property
    def reason(self) -> str:
        return self.driver.reason

    @override
    async def begin_ending(self) -> None:
        """Accept nothing more from outside; data still moves between the two ends."""
        await self.manager.begin_ending(hold=False)
        await self.host.begin_ending(hold=False)

    @override
    def owed(self) -> Mapping[int, int]:
        return Counter(self.driver.owed()) + Counter(self.host.owed())

    @override
    async def leave(self, patience: float) -> None:
        """Do nothing: the host end is in this process and ends with it."""

    @override
    def dropped_by_host(self) -> Mapping[int, int]:
        return dict(self.host.lost())


@asynccontextmanager
async def join_embedded(
    host: Host, manager: PortManager, dialect: str = "v8"
) -> AsyncIterator[Driver]:
    """Connect the ports of `manager` to a host end in this process while the block runs.

    The ports then also report how many bytes the host end has dropped.
    """
    manager.dropped_by_host, host.on_drop = host.dropped, manager.host_dropped
    try:
        async with drive(manager, open_embedded(host, dialect)) as driver:
            yield driver
    finally:
        manager.dropped_by_host, host.on_drop = None, lambda port_id: None


@define
class Embedded(Device):
    """A host end in this process, with these ports."""

    host_ports: Sequence[HostPortSpec]
    dialect: str = "v8"
    #: Seconds without progress after which an ending gives up a port.
    patience: float = DRAIN_TIME
    #: The path of a socket for `vconfs ctl`; None for no control socket.
    control: str | None = None
    url: str = EMBEDDED
    _host: Host | None = field(init=False, default=None)

    @override
    @asynccontextmanager
    async def open(self, manager: PortManager) -> AsyncIterator[Joint]:
        """Raise VconfsError also if a port cannot be opened."""
        async with (
            open_host(self.host_ports, patience=self.patience) as host,
            join_embedded(host, manager, self.dialect) as driver,
            open_background() as nursery,
        ):
            if self.control is not None:
                await nursery.start(serve_control, host, self.control)
            self._host = host
            try:
                yield _Both(host, driver, manager)
            finally:
                self._host = None

    @override
    def reopen_files(self) -> None:
        if self._host is not None:
            self._host.reopen_files()


@frozen
class Kernel(Device):
    """The ports of the kernel's driver."""

    url: str

    @override
    def open(self, manager: PortManager) -> AbstractAsyncContextManager[Joint]:
        return open_kernel(manager)

    @override
    def reopen_files(self) -> None:
        """Do nothing: the files belong to the host."""


@frozen
class Kind:
    """What a scheme of DEVICE urls means."""

    open: Open
    #: Parses the url after the scheme; raises ValueError if it is malformed.
    check: Callable[[str], object]
    dialects: Sequence[str] = field(factory=lambda: tuple(DIALECTS))
    #: Opens the device after unbinding it from its current driver.
    open_bound: Open | None = None
    #: Returns what opens the device as the guest with a name.
    open_named: Callable[[str], Open] | None = None


#: The schemes of DEVICE urls, besides `embedded`, `kernel` and `sockets`.
KINDS: Final[Mapping[str, Kind]] = {
    "pci": Kind(
        lambda rest, dialect: open_vfio(VfioAddress.parse(rest)),
        VfioAddress.parse,
        dialects=(PCI_DIALECT,),
        open_bound=lambda rest, dialect: open_bound_vfio(VfioAddress.parse(rest)),
    ),
    "qtest": Kind(
        lambda rest, dialect: open_qtest(rest), QtestAddress.parse, dialects=(PCI_DIALECT,)
    ),
    "stream": Kind(
        lambda rest, dialect: open_stream(rest),
        parse_stream_address,
        dialects=(STREAM_DIALECT,),
        open_named=lambda name: lambda rest, dialect: open_stream(rest, name),
    ),
    "vhost-user": Kind(open_vhost_user, parse_path),
}
#: The schemes of all DEVICE urls.
DEVICES: Final = (EMBEDDED, KERNEL, *KINDS, SOCKETS)


@frozen
class _Remote(Device):
    """A device at a url."""

    url: str
    dialect: str | None
    _open: Open
    _rest: str

    @override
    def open(self, manager: PortManager) -> AbstractAsyncContextManager[Joint]:
        return drive(manager, self._open(self._rest, self.dialect))

    @override
    def reopen_files(self) -> None:
        """Do nothing: the files belong to the host."""


def dialects_of(scheme: str) -> Sequence[str]:
    """Return the dialects that devices with this scheme speak; none if there is no device."""
    if scheme in KINDS:
        return KINDS[scheme].dialects
    return {KERNEL: (PCI_DIALECT,), SOCKETS: ()}.get(scheme, tuple(DIALECTS))


def parse_device(
    url: str, dialect: str | None = None, *, bind: bool = False, name: str | None = None
) -> Device:
    """Parse a DEVICE url other than `embedded` and `sockets:…`; raise ValueError if it is wrong.

    With `bind`, a PCI function is unbound from its driver while it is open, and bound again after.
    `name` is the guest's name for a host end that serves several; by default, the host name.
    """
    scheme, _, rest = url.partition(":")
    kind = KINDS.get(scheme)
    if scheme == SOCKETS:
        raise ValueError(f"{SOCKETS}: has the ports of many guests, not of one device")
    if kind is None and scheme != KERNEL:
        raise ValueError(f"unknown device {url!r}: it is one of {', '.join(DEVICES)}")
    dialects = dialects_of(scheme)
    if kind is None and rest:
        raise ValueError(f"this device has no address: what is {rest!r}?")
    if kind is not None:
        kind.check(rest)
    if dialect is not None and dialect not in dialects:
        raise ValueError(f"{scheme}: devices speak {' or '.join(dialects)}, not {dialect}")
    if bind and (kind is None or kind.open_bound is None):
        raise ValueError(f"{scheme}: devices have no driver to be taken from")
    if name is not None and (kind is None or kind.open_named is None):
        raise ValueError(f"{scheme}: a guest has no name there: it is for stream:… devices")
    if kind is None:
        return Kernel(url)
    if name is not None and kind.open_named is not None:
        opens = kind.open_named(guest_name(name))
    else:
        opens = (kind.open_bound if bind else None) or kind.open
    return _Remote(url, dialect, opens, rest)
