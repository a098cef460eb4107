"""A whole virtio console on a PCI bus: registers, and our own host end behind the rings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from tests.unit.device.fake_function import CONFIG, NOTIFY, FakeFunction
from vconfs.host._attached_guest import AttachedGuest
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPortSpec
from vconfs.host.rings import DeviceLink
from vconfs.protocol import virtio1
from vconfs.protocol.events import Data
from vconfs.protocol.virtio_pci import Common, Isr, Register
from vconfs.protocol.virtqueue import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    DeviceQueue,
    GuestMemory,
    Layout,
)

FEATURES = virtio1.FEATURES | virtio1.F_EMERG_WRITE | F_EVENT_IDX | F_INDIRECT_DESC | 1 << 32
_DRIVER_OK = 15


class FakeConsole(FakeFunction):
    """Serves the ports of `host`; a `quiet` one does nothing until `serve` is called."""

    def __init__(
        self,
        host: Host,
        *,
        vectors: int = 0,
        features: int = FEATURES,
        quiet: bool = False,
        resize_rows_first: bool = False,
    ) -> None:
        super().__init__(ports=4, vectors=vectors)
        self.host = host
        self.features = features
        self.attached: AttachedGuest | None = None
        self.rings: dict[int, DeviceQueue] = {}
        self._quiet = quiet
        self._rows_first = resize_rows_first
        self._accepted: dict[int, int] = {}
        self._end = self._make_end(features)
        self._link: DeviceLink | None = None
        #: Called when the driver resets the device, while it still uses the rings.
        self.before_reset: Callable[[], None] = lambda: None
        #: The queues of which the driver notified the device when it was reset.
        self.kicks_after_reset: list[int] = []

    def _make_end(self, features: int) -> virtio1.HostEnd:
        return virtio1.HostEnd(features, max_ports=4, resize_rows_first=self._rows_first)

    def post(self, bar: int, offset: int, size: int, value: int) -> None:
        if CONFIG <= offset < NOTIFY:
            event = self._end.receive_config_write(offset - CONFIG, value.to_bytes(size, "little"))
            if isinstance(event, Data):
                self.host.ports[event.id].feed(event.data, None)
            return
        super().post(bar, offset, size, value)
        if offset >= NOTIFY and self._link is None:
            self.kicks_after_reset.append(value)
        elif offset >= NOTIFY and self._link and not self._quiet:
            self._link.kicked(value)

    def _store(self, register: Register, value: int) -> None:
        super()._store(register, value)
        if register == Common.DRIVER_FEATURE:
            self._accepted[self.plain[Common.DRIVER_FEATURE_SELECT]] = value

    def _set_status(self, value: int) -> None:
        super()._set_status(value)
        if value == 0:
            if self._link is not None:
                self.before_reset()
            self.host.detach()
            self._link = None
        elif value == _DRIVER_OK:
            self._go()

    def _go(self) -> None:
        features = self._accepted[0] | self._accepted[1] << 32
        memory = GuestMemory(
            [(run.address, self.view[run.offset :][: run.size]) for run in self.memory.runs]
        )
        self._end = self._make_end(features)
        self.rings = {
            queue: DeviceQueue(memory, self._layout(queue), event_idx=bool(features & F_EVENT_IDX))
            for queue in range(self._end.queues)
        }
        self._link = DeviceLink(self.rings, features=features, call=self._call, header_size=0)
        self.attached = self.host.attach(self._link, self._end, self._announce_config)
        if not self._quiet:
            self.serve()

    def serve(self) -> None:
        """Begin to look at what the driver sends."""
        self._quiet = False
        assert self.attached is not None
        self.attached.start()

    def _layout(self, queue: int) -> Layout:
        def address(low: Register, high: Register) -> int:
            return self.words[queue, low] | self.words[queue, high] << 32

        return Layout(
            self.words[queue, Common.QUEUE_SIZE],
            address(Common.QUEUE_DESC_LOW, Common.QUEUE_DESC_HIGH),
            address(Common.QUEUE_DRIVER_LOW, Common.QUEUE_DRIVER_HIGH),
            address(Common.QUEUE_DEVICE_LOW, Common.QUEUE_DEVICE_HIGH),
        )

    def _announce_config(self) -> None:
        self.config = self._end.config(self.host.port_count, *self.host.size)
        self.generation += 1
        self.isr |= Isr.CONFIG
        self.interrupt(0 if self.vectors else None)

    def _call(self, queue: int) -> None:
        if self.vectors:
            self.interrupt(self.words[queue, Common.QUEUE_MSIX_VECTOR])
        else:
            self.isr |= Isr.QUEUE
            self.interrupt()


@asynccontextmanager
async def open_console(
    specs: Sequence[HostPortSpec],
    *,
    vectors: int = 0,
    features: int = FEATURES,
    quiet: bool = False,
    resize_rows_first: bool = False,
) -> AsyncIterator[FakeConsole]:
    """Have a console whose host end has these ports."""
    async with open_host(specs) as host:
        yield FakeConsole(
            host,
            vectors=vectors,
            features=features,
            quiet=quiet,
            resize_rows_first=resize_rows_first,
        )
