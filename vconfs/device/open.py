"""DEVICE urls: which device the guest end has, and how it is reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

import trio
from attrs import define, field, frozen

from vconfs.device.binding import PciFunction, bound
from vconfs.device.embedded import open_embedded
from vconfs.device.kernel import open_kernel
from vconfs.device.pci import DIALECT as PCI_DIALECT
from vconfs.device.qtest import QtestAddress, open_qtest
from vconfs.device.stream import open_stream
from vconfs.device.vfio import VfioAddress, open_vfio
from vconfs.device.vhost_user import open_vhost_user, parse_path
from vconfs.draining import DRAIN_TIME
from vconfs.driver import Driver
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPortSpec
from vconfs.ports import PortManager
from vconfs.protocol.dialect import DIALECTS
from vconfs.streams.url import DIALECT as STREAM_DIALECT
from vconfs.streams.url import parse_place

EMBEDDED: Final = "embedded"


class Joint(Protocol):
    """What joins ports to a device, until that is lost."""

    @property
    def stopped(self) -> trio.Event:
        """Set when nothing more will come."""

    @property
    def reason(self) -> str:
        """Why nothing more will come."""

    def begin_ending(self) -> None:
        """Have nothing more accepted from either side: see draining.py."""

    def owed(self) -> Mapping[int, int]:
        """Look at how many bytes each port owes to the device, and a host end in this process."""

    def dropped_by_host(self) -> Mapping[int, int]:
        """Tell how many bytes a host end in this process has dropped since, by port."""

    @property
    def tells_all_ports(self) -> bool:
        """True if all ports are known by now; else they come one by one."""


#: Opens a device: the ports to join to it, what its url says after the scheme, and the dialect
#: (None: the device's own). ValueError: the url makes no sense; DeviceError: it cannot be had.
Open = Callable[[PortManager, str, str | None], AbstractAsyncContextManager[Joint]]


class Device(Protocol):
    """A device that the guest end can open, and open again when it was lost."""

    @property
    def url(self) -> str:
        """What the user calls it."""

    def open(self, manager: PortManager) -> AbstractAsyncContextManager[Joint]:
        """Join the ports of `manager` to it for as long as the block runs; DeviceError."""

    def reopen_files(self) -> None:
        """Open the files anew that its ports are joined to, if they are ours."""


@frozen
class _Both:
    """Both ends in this process."""

    host: Host
    driver: Driver
    manager: PortManager

    @property
    def tells_all_ports(self) -> bool:
        """See `Joint`."""
        return self.driver.tells_all_ports

    @property
    def stopped(self) -> trio.Event:
        """See `Joint`."""
        return self.driver.stopped

    @property
    def reason(self) -> str:
        """See `Joint`."""
        return self.driver.reason

    def begin_ending(self) -> None:
        """See `Joint`: between both ends data goes on."""
        self.manager.begin_ending(hold=False)
        self.host.begin_ending(hold=False)

    def owed(self) -> Mapping[int, int]:
        """See `Joint`."""
        return Counter(self.driver.untaken()) + Counter(self.host.owed())

    def dropped_by_host(self) -> Mapping[int, int]:
        """See `Joint`."""
        return dict(self.host.lost())


@define
class Embedded:
    """A host end of our own, in this process, with these ports."""

    host_ports: Sequence[HostPortSpec]
    dialect: str = "v8"
    #: Seconds without progress after which an ending gives a port up.
    patience: float = DRAIN_TIME
    url: str = EMBEDDED
    _host: Host | None = field(init=False, default=None)

    @asynccontextmanager
    async def open(self, manager: PortManager) -> AsyncIterator[Joint]:
        """See `Device.open`; HostError: a port cannot be had."""
        async with (
            open_host(self.host_ports, patience=self.patience) as host,
            open_embedded(host, manager, self.dialect) as driver,
        ):
            self._host = host
            try:
                yield _Both(host, driver, manager)
            finally:
                self._host = None

    def reopen_files(self) -> None:
        """See `Device.reopen_files`."""
        if self._host is not None:
            self._host.reopen_files()


@frozen
class Kind:
    """What a scheme of DEVICE urls stands for."""

    open: Open
    #: Reads what stands after the scheme; ValueError: it makes no sense.
    check: Callable[[str], object]
    dialects: Sequence[str] = field(factory=lambda: tuple(DIALECTS))
    #: Opens the device after taking it from the driver that has it.
    open_bound: Open | None = None


@asynccontextmanager
async def _open_bound_vfio(
    manager: PortManager, rest: str, dialect: str | None
) -> AsyncIterator[Joint]:
    address = VfioAddress.parse(rest)
    with bound(PciFunction(address.pci)):
        async with open_vfio(manager, address) as driver:
            yield driver


def _check_nothing(rest: str) -> None:
    if rest:
        raise ValueError(f"this device has no address: what is {rest!r}?")


#: What can stand before the colon of a DEVICE url.
DEVICES: Final[Mapping[str, Kind]] = {
    "kernel": Kind(
        lambda manager, rest, dialect: open_kernel(manager), _check_nothing, dialects=(PCI_DIALECT,)
    ),
    "pci": Kind(
        lambda manager, rest, dialect: open_vfio(manager, VfioAddress.parse(rest)),
        VfioAddress.parse,
        dialects=(PCI_DIALECT,),
        open_bound=_open_bound_vfio,
    ),
    "qtest": Kind(
        lambda manager, rest, dialect: open_qtest(manager, rest),
        QtestAddress.parse,
        dialects=(PCI_DIALECT,),
    ),
    "stream": Kind(
        lambda manager, rest, dialect: open_stream(manager, rest),
        parse_place,
        dialects=(STREAM_DIALECT,),
    ),
    "vhost-user": Kind(open_vhost_user, parse_path),
}


@frozen
class _Remote:
    """A device at a url."""

    url: str
    dialect: str | None
    _open: Open
    _rest: str

    def open(self, manager: PortManager) -> AbstractAsyncContextManager[Joint]:
        """See `Device.open`."""
        return self._open(manager, self._rest, self.dialect)

    def reopen_files(self) -> None:
        """Do nothing: the files are the host's."""


def parse_device(url: str, dialect: str | None = None, *, bind: bool = False) -> Device:
    """Read a DEVICE url other than `embedded`; ValueError says what is wrong with it.

    With `bind`, a PCI function is taken from its driver while it is open, and given back.
    """
    scheme, _, rest = url.partition(":")
    kind = DEVICES.get(scheme)
    if kind is None:
        known = ", ".join([EMBEDDED, *DEVICES])
        raise ValueError(f"unknown device {url!r}: it is one of {known}")
    kind.check(rest)
    if dialect is not None and dialect not in kind.dialects:
        raise ValueError(f"{scheme}: devices speak {' or '.join(kind.dialects)}, not {dialect}")
    opener = kind.open_bound if bind else kind.open
    if opener is None:
        raise ValueError(f"{scheme}: devices have no driver to be taken from")
    return _Remote(url, dialect, opener, rest)
