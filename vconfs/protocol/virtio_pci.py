"""The layout of a virtio device on a PCI bus (virtio 1.2 §4.1), read by pure functions.

Theory of operation
-------------------
A PCI function has a *config space* of 256 bytes. Its *base address registers* (BARs) have the
addresses of up to six windows of device memory; a linked list of *capabilities* describes their
contents. A modern virtio device has a capability for each structure:

    common   features, status and queues: the registers of `Common`
    notify   where to write a queue's number to kick it: queue_notify_off x multiplier
    isr      why the interrupt line was raised; reading it lowers the line
    device   the config space of the device type

    capability: u8 id = 9, u8 next, u8 length, u8 cfg_type, u8 bar, u8 id, u16 padding,
                le32 offset, le32 length; notify has le32 multiplier after it

A device with none of these only has the old, legacy interface, and is refused. Nothing from the
device is trusted: for bad values `parse_function` raises RemoteProtocolError with the field and
its value, and `check_bars` checks that the structures are inside the BARs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from attrs import frozen

from vconfs.protocol.errors import RemoteProtocolError

CONFIG_SIZE: Final = 256
VENDOR: Final = 0x1AF4
CONSOLE: Final = 0x1043  # device id of a modern console: 0x1040 and the device type 3
CONSOLE_TRANSITIONAL: Final = 0x1003  # one that also has the legacy interface

F_VERSION_1: Final = 1 << 32
F_ACCESS_PLATFORM: Final = 1 << 33


# Registers of the config space.
COMMAND: Final = 0x04
COMMAND_MEMORY: Final = 1 << 1
COMMAND_MASTER: Final = 1 << 2
COMMAND_INTX_OFF: Final = 1 << 10
BAR_0: Final = 0x10
BARS: Final = 6
_STATUS: Final = 0x06
_STATUS_CAPABILITIES: Final = 1 << 4
_CAPABILITIES: Final = 0x34
_CAPABILITIES_START: Final = 0x40

_CAP_VENDOR: Final = 0x09
_CAP_MSIX: Final = 0x11
_VIRTIO_CAP: Final = struct.Struct("<BBBBBBxxII")
_MSIX_CAP: Final = struct.Struct("<BBHII")

# MSI-X: in the message control word of the capability, and a table entry.
MSIX_ENABLE: Final = 1 << 15
MSIX_ENTRY: Final = struct.Struct("<QII")  # address, data, 1: masked


class Status(IntFlag):
    """Bits of the device status register."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class Isr(IntFlag):
    """Bits of the ISR register: the reasons of an interrupt."""

    QUEUE = 1
    CONFIG = 2


class Register(NamedTuple):
    """A register of the common structure."""

    offset: int
    size: int


class Common:
    """The registers of the common structure (virtio 1.2 §4.1.4.3)."""

    DEVICE_FEATURE_SELECT: Final = Register(0, 4)
    DEVICE_FEATURE: Final = Register(4, 4)
    DRIVER_FEATURE_SELECT: Final = Register(8, 4)
    DRIVER_FEATURE: Final = Register(12, 4)
    CONFIG_MSIX_VECTOR: Final = Register(16, 2)
    NUM_QUEUES: Final = Register(18, 2)
    DEVICE_STATUS: Final = Register(20, 1)
    CONFIG_GENERATION: Final = Register(21, 1)
    QUEUE_SELECT: Final = Register(22, 2)
    QUEUE_SIZE: Final = Register(24, 2)
    QUEUE_MSIX_VECTOR: Final = Register(26, 2)
    QUEUE_ENABLE: Final = Register(28, 2)
    QUEUE_NOTIFY_OFF: Final = Register(30, 2)
    QUEUE_DESC_LOW: Final = Register(32, 4)
    QUEUE_DESC_HIGH: Final = Register(36, 4)
    QUEUE_DRIVER_LOW: Final = Register(40, 4)
    QUEUE_DRIVER_HIGH: Final = Register(44, 4)
    QUEUE_DEVICE_LOW: Final = Register(48, 4)
    QUEUE_DEVICE_HIGH: Final = Register(52, 4)


class Structure(IntEnum):
    """The `cfg_type` of the virtio capabilities that a driver needs."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4


#: Structure → its minimal size in bytes, and its alignment.
_SHAPES: Final[Mapping[Structure, tuple[int, int]]] = {
    Structure.COMMON: (56, 4),
    Structure.NOTIFY: (2, 2),
    Structure.ISR: (1, 1),
    Structure.DEVICE: (1, 4),
}


@frozen
class Region:
    """A part of one BAR's memory."""

    bar: int
    offset: int
    length: int


@frozen
class Msix:
    """The MSI-X capability: its offset in the config space, and the table of vectors."""

    capability: int
    vectors: int
    table: Region


@frozen
class Function:
    """A PCI function that is a modern virtio console, and the positions of its structures."""

    device: int
    common: Region
    notify: Region
    notify_multiplier: int
    isr: Region
    config: Region
    msix: Msix | None

    def notify_offset(self, queue: int, notify_off: int) -> int:
        """Return the offset in the notify BAR at which a queue is kicked: its number is written.

        `notify_off` is the queue_notify_off of the queue.
        """
        start = notify_off * self.notify_multiplier
        if start + 2 > self.notify.length:
            raise RemoteProtocolError(
                f"queue_notify_off {notify_off} of queue {queue} is outside of the notify"
                f" structure of {self.notify.length} bytes"
            )
        return self.notify.offset + start

    def check_bars(self, sizes: Mapping[int, int]) -> None:
        """Raise RemoteProtocolError unless every structure is inside a memory BAR.

        `sizes` has the size of each BAR by its number.
        """
        regions = {
            "common": self.common,
            "notify": self.notify,
            "isr": self.isr,
            "device": self.config,
        }
        if self.msix:
            regions["MSI-X table"] = self.msix.table
        for name, region in regions.items():
            size = sizes.get(region.bar, 0)
            if not size:
                raise RemoteProtocolError(f"{name}: BAR {region.bar} has no memory")
            if region.offset + region.length > size:
                raise RemoteProtocolError(
                    f"{name}: {region.length} bytes at {region.offset:#x} are outside of"
                    f" BAR {region.bar} of {size:#x} bytes"
                )


def is_console(config: bytes) -> bool:
    """True if a config space, or its first four bytes, is that of a virtio console."""
    vendor, device = struct.unpack_from("<HH", config)
    return vendor == VENDOR and device in (CONSOLE, CONSOLE_TRANSITIONAL)


def parse_function(config: bytes) -> Function:
    """Find the virtio structures of a console in its whole config space.

    Raise RemoteProtocolError if it is not a virtio console, a legacy one, or its capabilities are
    wrong.
    """
    if len(config) != CONFIG_SIZE:
        raise RemoteProtocolError(f"a PCI config space has 256 bytes, not {len(config)}")
    vendor, device = struct.unpack_from("<HH", config)
    if vendor == 0xFFFF:
        raise RemoteProtocolError("there is no PCI function")
    if not is_console(config):
        raise RemoteProtocolError(
            f"the PCI function {vendor:04x}:{device:04x} is not a virtio console"
        )
    found: dict[Structure, tuple[int, Region]] = {}
    for at, kind in walk_capabilities(config):
        if kind == _CAP_VENDOR:
            _add_structure(found, config, at)
    return _assemble(device, config, found, find_msix(config))


def walk_capabilities(config: bytes) -> Iterator[tuple[int, int]]:
    """Yield the offset and the id of each capability.

    Raise RemoteProtocolError if the list has a loop or a bad pointer.
    """
    if not struct.unpack_from("<H", config, _STATUS)[0] & _STATUS_CAPABILITIES:
        return
    seen: set[int] = set()
    at = config[_CAPABILITIES] & ~3
    while at:
        if at < _CAPABILITIES_START:
            raise RemoteProtocolError(f"capability pointer {at:#x} is inside of the PCI header")
        if at in seen:
            raise RemoteProtocolError(f"the capability list has a loop at {at:#x}")
        seen.add(at)
        yield at, config[at]
        at = config[at + 1] & ~3


def find_msix(config: bytes) -> Msix | None:
    """Return the MSI-X capability of any PCI function, from its whole config space, or None."""
    for at, kind in walk_capabilities(config):
        if kind == _CAP_MSIX:
            return _parse_msix(config, at)
    return None


def _add_structure(found: dict[Structure, tuple[int, Region]], config: bytes, at: int) -> None:
    """Add a structure if it is the first of its kind. Skip those that a driver must ignore."""
    length = config[at + 2]
    if length < 4 or at + length > CONFIG_SIZE:
        raise RemoteProtocolError(f"cap_len {length} of the capability at {at:#x}")
    try:
        kind = Structure(config[at + 3])
    except ValueError:
        return  # a reserved cfg_type, or the window into config space
    if kind in found:
        return
    needed = _VIRTIO_CAP.size + (4 if kind is Structure.NOTIFY else 0)
    if length < needed:
        raise RemoteProtocolError(f"{kind.name.lower()}: cap_len {length} is less than {needed}")
    _, _, _, _, bar, _, offset, size = _VIRTIO_CAP.unpack_from(config, at)
    if bar >= BARS:
        return  # reserved: to be ignored
    smallest, alignment = _SHAPES[kind]
    if size < smallest:
        raise RemoteProtocolError(f"{kind.name.lower()}: length {size} is less than {smallest}")
    if offset % alignment:
        raise RemoteProtocolError(f"{kind.name.lower()}: offset {offset:#x} is not aligned")
    found[kind] = at, Region(bar, offset, size)


def _parse_msix(config: bytes, at: int) -> Msix:
    if at + _MSIX_CAP.size > CONFIG_SIZE:
        raise RemoteProtocolError(f"the MSI-X capability at {at:#x} is cut off")
    _, _, control, table, _ = _MSIX_CAP.unpack_from(config, at)
    bar, offset = table & 7, table & ~7
    if bar >= BARS:
        raise RemoteProtocolError(f"MSI-X table: BAR {bar}")
    vectors = (control & 0x7FF) + 1
    return Msix(at, vectors, Region(bar, offset, vectors * MSIX_ENTRY.size))


def _assemble(
    device: int, config: bytes, found: Mapping[Structure, tuple[int, Region]], msix: Msix | None
) -> Function:
    if not found:
        raise RemoteProtocolError(
            "the device has only the legacy interface (QEMU: disable-legacy=on, disable-modern=off)"
        )
    for kind in Structure:
        if kind not in found:
            raise RemoteProtocolError(f"the device has no {kind.name.lower()} structure")
    at, notify = found[Structure.NOTIFY]
    multiplier: int = struct.unpack_from("<I", config, at + _VIRTIO_CAP.size)[0]
    if multiplier and (multiplier < 2 or multiplier & (multiplier - 1)):
        raise RemoteProtocolError(
            f"notify: notify_off_multiplier {multiplier} is not an even power of 2"
        )
    return Function(
        device,
        common=found[Structure.COMMON][1],
        notify=notify,
        notify_multiplier=multiplier,
        isr=found[Structure.ISR][1],
        config=found[Structure.DEVICE][1],
        msix=msix,
    )


@frozen
class Bar:
    """The contents of a base address register."""

    memory: bool
    wide: bool  # 64 bits: it uses the next register as well
    size: int  # 0 if there is no BAR


def parse_bar(index: int, low: int, high: int) -> Bar:
    """Parse a BAR: what it and the next register read after all ones were written to both."""
    if not low:
        return Bar(memory=True, wide=False, size=0)
    if low & 1:
        return Bar(memory=False, wide=False, size=-(low & ~3) & 0xFFFF)
    wide = low & 6 == 4
    if wide and index == BARS - 1:
        raise RemoteProtocolError("BAR 5 has 64 bits, and no register after it")
    mask = low & ~15 | (high << 32 if wide else 0xFFFFFFFF << 32)
    size = -mask & 0xFFFFFFFFFFFFFFFF
    if not size or size & (size - 1):
        raise RemoteProtocolError(f"BAR {index}: size mask {mask:#x}")
    return Bar(memory=True, wide=wide, size=size)


def choose_features(offered: int, wanted: int) -> int:
    """Return the features to accept. Raise RemoteProtocolError for a legacy device."""
    if not offered & F_VERSION_1:
        raise RemoteProtocolError("the device does not offer VERSION_1: it is a legacy device")
    return offered & (wanted | F_VERSION_1)
