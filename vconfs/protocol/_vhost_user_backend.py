"""The back-end of vhost-user: the effect of each request of a front-end, and the answer to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, Final

from attrs import frozen

from vconfs.protocol import _vhost_user_messages as wire
from vconfs.protocol._vhost_user_channel import Channel
from vconfs.protocol._vhost_user_events import (
    BackendEvent,
    ChannelSet,
    ConfigWritten,
    DeviceReset,
    FeaturesSet,
    Handled,
    Kicked,
    MemoryRegionAdded,
    MemoryRegionRemoved,
    MemoryTableSet,
    Notifier,
    NotifierChanged,
    RingEnabled,
    RingMoved,
    RingStarted,
    RingStopped,
)
from vconfs.protocol._vhost_user_memory import AddressTable, Region
from vconfs.protocol._vhost_user_messages import (
    Message,
    Refused,
    Request,
    name_of,
    pack,
    unpack,
)
from vconfs.protocol._vhost_user_ring import Ring
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError

_INBAND_NEEDS: Final = wire.PF_BACKEND_REQ | wire.PF_REPLY_ACK


class _BrokenError(RemoteProtocolError):
    """A malformed message, which ends the connection instead of being refused."""


class Backend:
    """The back-end's state for one connection of a front-end.

    `features` and `protocol_features` are the offered ones. `read_config` returns the current
    config space, of which the guest may write the bytes in `writable`. Descriptors of messages
    belong to the back-end from `receive` on. It returns each of them once: in an event whose
    descriptors belong to the owner, in `Handled.close`, or by `release` at the end. Until then the
    owner may use the descriptors of the rings.
    """

    def __init__(
        self,
        *,
        features: int,
        protocol_features: int,
        queues: int,
        read_config: Callable[[], bytes] = bytes,
        writable: range = range(0),
        mem_slots: int = 32,
    ) -> None:
        if not 0 < queues <= wire.QUEUES_MAX:
            raise LocalProtocolError(f"{queues} queues, not 1 to {wire.QUEUES_MAX}")
        self._offered = features | (wire.F_PROTOCOL_FEATURES if protocol_features else 0)
        self._offered_protocol = protocol_features
        self._read_config = read_config
        self._writable = writable
        self._mem_slots = mem_slots
        self._rings = [Ring(index) for index in range(queues)]
        self._accepted = 0
        self._fds: list[int] = []  # of the message that is being handled
        self._handled = Handled()
        self._stopping: int | None = None
        self._error: RemoteProtocolError | None = None
        #: The requests that can be sent to the front-end.
        self.channel: Channel = Channel()
        #: The regions that the front-end shares now.
        self.memory: AddressTable = AddressTable()

    @property
    def protocol_features(self) -> int:
        """The negotiated protocol features."""
        return self.channel.protocol_features

    @property
    def features(self) -> int:
        """The features that the front-end has chosen, without VHOST_USER_F_PROTOCOL_FEATURES."""
        return self._accepted & ~wire.F_PROTOCOL_FEATURES

    @property
    def queues(self) -> int:
        """The number of queues that the device has."""
        return len(self._rings)

    @property
    def queues_named(self) -> int:
        """The number of queues up to the last one for which the front-end has set up anything."""
        return max((ring.index + 1 for ring in self._rings if ring.num or ring.fds), default=0)

    def receive(self, message: Message) -> Handled:
        """Handle a message of the front-end. Return its effects and the reply.

        Raise RemoteProtocolError if the connection cannot go on, and again in each further call.
        """
        if self._stopping is not None:
            raise LocalProtocolError(f"where ring {self._stopping} stopped was not told")
        self._fds += message.fds
        if self._error is not None:
            raise self._error
        self._handled = Handled()
        try:
            self._handled.reply = self._dispatch(message)
        except RemoteProtocolError as error:
            self._error = error
            self._fds += self._handled.close
            raise
        self._handled.close += self._fds
        self._fds = []
        return self._handled

    def is_enabled(self, index: int) -> bool:
        """True if a ring is enabled: a started one may then be served with visible effects."""
        return self._enabled(self._rings[index])

    def ring_stopped(self, index: int, base: int) -> bytes:
        """Return the reply after `RingStopped`, to be sent before anything else is handled.

        `base` is the next entry of the available ring that would have been taken.
        """
        if self._stopping != index:
            raise LocalProtocolError(f"there was no request for where ring {index} stopped")
        self._stopping = None
        self._rings[index].base = base
        state = wire.VRING_STATE.pack(index, base)
        return pack(Request.GET_VRING_BASE, state, wire.REPLY)

    def release(self) -> list[int]:
        """Return all descriptors at the end. The caller closes them."""
        held = self._fds
        self._fds = []
        for ring in self._rings:
            held += ring.fds.values()
            ring.fds.clear()
        return held

    # Requests of the front-end

    def _dispatch(self, message: Message) -> bytes:
        """Handle a message, and return the reply."""
        request = message.request
        if message.flags & wire.REPLY:
            raise RemoteProtocolError(f"{name_of(request)} has the flag of a reply")
        rule = _RULES.get(request)
        if rule is None or rule.feature & ~self.protocol_features:
            self._refuse(request, f"unknown {name_of(request)}")
            return self._ack(message, 1)
        fields = rule.take_apart(message)
        try:
            reply = rule.handler(self, *fields)
        except _BrokenError:
            raise
        except RemoteProtocolError as error:
            if rule.answered or not (self._wants_ack(message) or rule.tolerated):
                raise
            self._refuse(request, str(error))
            return self._ack(message, 1)
        if rule.answered:
            return b"" if reply is None else pack(request, reply, wire.REPLY)
        return self._ack(message, 0)

    def _wants_ack(self, message: Message) -> bool:
        """True if a message is to be acknowledged, once it was handled.

        Linux already expects this for the SET_PROTOCOL_FEATURES that chooses REPLY_ACK.
        """
        return message.needs_reply and bool(self.protocol_features & wire.PF_REPLY_ACK)

    def _ack(self, message: Message, result: int) -> bytes:
        if not self._wants_ack(message):
            return b""
        return pack(message.request, wire.U64.pack(result), wire.REPLY)

    def _refuse(self, request: int, reason: str) -> None:
        self._tell(Refused(request, reason))

    def _tell(self, *events: BackendEvent) -> None:
        self._handled.events += events

    def _get_features(self) -> bytes:
        return wire.U64.pack(self._offered)

    def _set_features(self, features: int) -> None:
        if more := features & ~self._offered:
            raise RemoteProtocolError(
                f"features {more:#x} were chosen but not offered ({self._offered:#x} were)"
            )
        before = [self._enabled(ring) for ring in self._rings]
        self._accepted = features
        self._tell(FeaturesSet(self.features))
        for ring, was in zip(self._rings, before, strict=True):
            self._tell_enabled(ring, was)

    def _get_protocol_features(self) -> bytes:
        return wire.U64.pack(self._offered_protocol)

    def _set_protocol_features(self, features: int) -> None:
        if more := features & ~self._offered_protocol:
            raise RemoteProtocolError(
                f"protocol features {more:#x} were chosen but not offered "
                f"({self._offered_protocol:#x} were)"
            )
        if features & wire.PF_INBAND_NOTIFICATIONS and ~features & _INBAND_NEEDS:
            raise _BrokenError("INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK")
        self.channel.protocol_features = features

    def _do_nothing(self) -> None:
        """Ignore SET_OWNER, which only starts the session, and RESET_OWNER, as QEMU advises."""

    def _get_queue_num(self) -> bytes:
        return wire.U64.pack(len(self._rings))

    # Memory

    def _set_mem_table(self, payload: bytes) -> None:
        if len(payload) < wire.MEM_TABLE.size:
            raise _BrokenError(f"SET_MEM_TABLE with a payload of {len(payload)} bytes")
        count, _ = wire.MEM_TABLE.unpack_from(payload)
        if count > wire.TABLE_REGIONS_MAX:
            raise _BrokenError(f"SET_MEM_TABLE with {count} regions")
        # The payload may be longer than its regions: Linux always sends space for two.
        if len(payload) < wire.MEM_TABLE.size + count * wire.REGION.size:
            raise _BrokenError(
                f"SET_MEM_TABLE with {count} regions in a payload of {len(payload)} bytes"
            )
        if len(self._fds) != count:
            raise _BrokenError(
                f"SET_MEM_TABLE with {count} regions and {len(self._fds)} descriptors"
            )
        regions = tuple(
            Region.unpack(payload, wire.MEM_TABLE.size + i * wire.REGION.size) for i in range(count)
        )
        table = AddressTable(regions)
        fds, self._fds = tuple(self._fds), []
        self._change_memory(table, MemoryTableSet(regions, fds))

    def _get_max_mem_slots(self) -> bytes:
        return wire.U64.pack(self._mem_slots)

    def _add_mem_reg(self, _: int, description: bytes) -> None:
        region = Region.unpack(description)
        if len(self.memory.regions) >= self._mem_slots:
            raise RemoteProtocolError(f"there are {self._mem_slots} regions already")
        table = self.memory.added(region)
        self._change_memory(table, MemoryRegionAdded(region, self._fds.pop()))

    def _rem_mem_reg(self, _: int, description: bytes) -> None:
        region = Region.unpack(description)
        self._change_memory(self.memory.removed(region), MemoryRegionRemoved(region))

    def _change_memory(self, table: AddressTable, event: BackendEvent) -> None:
        """Move the started rings to other memory, and stop those that are outside of it."""
        self.memory = table
        moved: list[BackendEvent] = []
        for ring in self._rings:
            if ring.started:
                try:
                    moved.append(RingMoved(ring.index, ring.layout(table)))
                except RemoteProtocolError:
                    self._stop(ring)
        self._tell(event, *moved)

    # Rings

    def _set_vring_num(self, index: int, num: int) -> None:
        ring = self._ring_to_set_up(index)
        ring.set_num(num)
        self._stop(ring)

    def _set_vring_base(self, index: int, base: int) -> None:
        ring = self._ring_to_set_up(index)
        ring.set_base(base)
        self._stop(ring)

    def _set_vring_addr(
        self, index: int, flags: int, desc: int, used: int, avail: int, log: int
    ) -> None:
        ring = self._ring_to_set_up(index)
        if flags:
            raise RemoteProtocolError(f"ring {index} with flags {flags:#x}")
        ring.set_parts((desc, avail, used), self.memory)
        self._stop(ring)

    def _get_vring_base(self, index: int, _: int) -> bytes | None:
        ring = self._ring(index)
        self._close_notifiers(ring, Notifier.KICK, Notifier.CALL)
        if not ring.started:
            return wire.VRING_STATE.pack(index, ring.base)
        self._stop(ring, answer=True)
        self._stopping = index
        return None

    def _set_vring_kick(self, word: int) -> None:
        ring = self._ring_of(word)
        ring.layout(self.memory)  # raises, before a descriptor is taken, if it cannot start
        self._take_notifier(ring, Notifier.KICK)
        self._start(ring)

    def _set_vring_call(self, word: int) -> None:
        self._take_notifier(self._ring_of(word), Notifier.CALL)

    def _set_vring_err(self, word: int) -> None:
        self._take_notifier(self._ring_of(word), Notifier.ERR)

    def _set_vring_enable(self, index: int, on: int) -> None:
        ring = self._ring(index)
        was = self._enabled(ring)
        ring.enabled = bool(on)
        self._tell_enabled(ring, was)

    def _vring_kick(self, index: int, _: int) -> None:
        ring = self._ring(index)
        self._start(ring)
        self._tell(Kicked(index))

    def _ring(self, index: int) -> Ring:
        if index >= len(self._rings):
            raise RemoteProtocolError(f"ring {index} of {len(self._rings)}")
        return self._rings[index]

    def _ring_of(self, word: int) -> Ring:
        """Return the ring of a SET_VRING_KICK, _CALL or _ERR."""
        index = word & wire.VRING_INDEX
        expected = 0 if word & wire.VRING_NO_FD else 1
        if len(self._fds) != expected:
            raise _BrokenError(f"{len(self._fds)} descriptors, not {expected}, for ring {index}")
        return self._ring(index)

    def _ring_to_set_up(self, index: int) -> Ring:
        """Return a ring that is not running. If it is started but disabled, the caller stops it."""
        ring = self._ring(index)
        if ring.started and self._enabled(ring):
            raise RemoteProtocolError(f"ring {index} is running")
        return ring

    def _enabled(self, ring: Ring) -> bool:
        """True if a ring is enabled. Without protocol features it is enabled from the start."""
        return ring.enabled or not self._accepted & wire.F_PROTOCOL_FEATURES

    def _tell_enabled(self, ring: Ring, was: bool) -> None:
        if ring.started and self._enabled(ring) != was:
            self._tell(RingEnabled(ring.index, not was))

    def _take_notifier(self, ring: Ring, notifier: Notifier) -> None:
        """Replace the ring's descriptor with the one that came with the message, or with none."""
        self._close_notifiers(ring, notifier)
        fd = self._fds.pop() if self._fds else None
        if fd is not None:
            ring.fds[notifier] = fd
        if ring.started:
            self._tell(NotifierChanged(ring.index, notifier, fd))

    def _close_notifiers(self, ring: Ring, *notifiers: Notifier) -> None:
        fds = [ring.fds.pop(notifier) for notifier in notifiers if notifier in ring.fds]
        self._handled.close += fds

    def _start(self, ring: Ring) -> None:
        if not ring.started:
            setup = ring.setup(self.memory, self._enabled(ring))
            ring.started = True
            self._tell(RingStarted(ring.index, setup))

    def _stop(self, ring: Ring, *, answer: bool = False) -> None:
        if ring.started:
            ring.started = False
            self._tell(RingStopped(ring.index, answer))

    # The device

    def _set_backend_req_fd(self) -> None:
        self._tell(ChannelSet(self._fds.pop()))

    def _get_config(self, payload: bytes) -> bytes:
        offset, size, flags, _ = _config_access(Request.GET_CONFIG, payload)
        if offset + size > wire.CONFIG_MAX:
            self._refuse(Request.GET_CONFIG, f"config bytes {offset} to {offset + size}")
            return b""  # an empty reply is a refusal
        config = self._read_config().ljust(wire.CONFIG_MAX, b"\0")
        return wire.CONFIG.pack(offset, size, flags) + config[offset : offset + size]

    def _set_config(self, payload: bytes) -> None:
        offset, size, flags, data = _config_access(Request.SET_CONFIG, payload)
        if flags == wire.CONFIG_WRITABLE:
            allowed = self._writable
        elif flags == wire.CONFIG_MIGRATION:
            allowed = range(len(self._read_config()))
        else:
            raise RemoteProtocolError(f"SET_CONFIG with flags {flags:#x}")
        if size and not (offset in allowed and offset + size - 1 in allowed):
            raise RemoteProtocolError(f"config bytes {offset} to {offset + size} are not writable")
        self._tell(ConfigWritten(offset, data, flags == wire.CONFIG_MIGRATION))

    def _reset_device(self) -> None:
        for ring in self._rings:
            self._stop(ring)
            self._close_notifiers(ring, *Notifier)
        self._rings = [Ring(index) for index in range(len(self._rings))]
        self._tell(DeviceReset())


def _config_access(request: Request, payload: bytes) -> tuple[int, int, int, bytes]:
    """Return offset, size, flags and data of a GET_CONFIG or SET_CONFIG."""
    if len(payload) < wire.CONFIG.size:
        raise _BrokenError(f"{request.name} with a payload of {len(payload)} bytes")
    offset, size, flags = wire.CONFIG.unpack_from(payload)
    data = payload[wire.CONFIG.size :]
    if len(data) != size:
        raise _BrokenError(f"{request.name} of {size} bytes with {len(data)} bytes")
    return offset, size, flags, data


@frozen
class _Rule:
    """The handler of a request, the layout of its payload (None: raw bytes), and its conditions.

    `fds` is the allowed number of descriptors, `feature` the needed protocol feature. A request
    that is `answered` has a reply of its own and cannot be refused. The refusal of a `tolerated`
    one does not end the connection, even if the front-end does not ask for an answer.
    """

    handler: Callable[..., bytes | None]
    layout: Struct | None = wire.NOTHING
    fds: range = range(1)
    feature: int = 0
    answered: bool = False
    tolerated: bool = False

    def take_apart(self, message: Message) -> tuple[Any, ...]:
        """Return the fields of the payload.

        Raise RemoteProtocolError if its size or the number of descriptors is wrong.
        """
        fields = (message.payload,) if self.layout is None else unpack(message, self.layout)
        if len(message.fds) not in self.fds:
            raise RemoteProtocolError(
                f"{name_of(message.request)} with {len(message.fds)} descriptors"
            )
        return fields


_ONE: Final = range(1, 2)
_STATE: Final = wire.VRING_STATE

_RULES: Final[Mapping[int, _Rule]] = {
    Request.GET_FEATURES: _Rule(Backend._get_features, answered=True),
    Request.SET_FEATURES: _Rule(Backend._set_features, wire.U64),
    Request.SET_OWNER: _Rule(Backend._do_nothing),
    Request.RESET_OWNER: _Rule(Backend._do_nothing),
    Request.SET_MEM_TABLE: _Rule(Backend._set_mem_table, None, range(wire.FDS_MAX + 1)),
    Request.SET_VRING_NUM: _Rule(Backend._set_vring_num, _STATE),
    Request.SET_VRING_ADDR: _Rule(Backend._set_vring_addr, wire.VRING_ADDR),
    Request.SET_VRING_BASE: _Rule(Backend._set_vring_base, _STATE),
    Request.GET_VRING_BASE: _Rule(Backend._get_vring_base, _STATE, answered=True),
    Request.SET_VRING_KICK: _Rule(Backend._set_vring_kick, wire.U64, range(2)),
    Request.SET_VRING_CALL: _Rule(Backend._set_vring_call, wire.U64, range(2)),
    Request.SET_VRING_ERR: _Rule(Backend._set_vring_err, wire.U64, range(2)),
    Request.GET_PROTOCOL_FEATURES: _Rule(Backend._get_protocol_features, answered=True),
    Request.SET_PROTOCOL_FEATURES: _Rule(Backend._set_protocol_features, wire.U64),
    Request.GET_QUEUE_NUM: _Rule(Backend._get_queue_num, feature=wire.PF_MQ, answered=True),
    Request.SET_VRING_ENABLE: _Rule(Backend._set_vring_enable, _STATE),
    Request.SET_BACKEND_REQ_FD: _Rule(
        Backend._set_backend_req_fd, fds=_ONE, feature=wire.PF_BACKEND_REQ
    ),
    Request.GET_CONFIG: _Rule(Backend._get_config, None, feature=wire.PF_CONFIG, answered=True),
    Request.SET_CONFIG: _Rule(Backend._set_config, None, feature=wire.PF_CONFIG, tolerated=True),
    Request.RESET_DEVICE: _Rule(Backend._reset_device, feature=wire.PF_RESET_DEVICE),
    Request.VRING_KICK: _Rule(Backend._vring_kick, _STATE, feature=wire.PF_INBAND_NOTIFICATIONS),
    Request.GET_MAX_MEM_SLOTS: _Rule(
        Backend._get_max_mem_slots, feature=wire.PF_CONFIGURE_MEM_SLOTS, answered=True
    ),
    Request.ADD_MEM_REG: _Rule(
        Backend._add_mem_reg, wire.MEM_REG, _ONE, feature=wire.PF_CONFIGURE_MEM_SLOTS
    ),
    # Some front-ends send a descriptor, which is closed.
    Request.REM_MEM_REG: _Rule(
        Backend._rem_mem_reg, wire.MEM_REG, range(2), feature=wire.PF_CONFIGURE_MEM_SLOTS
    ),
}
