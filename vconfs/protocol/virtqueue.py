"""Split virtqueues over a memoryview, the driver's side and the device's (virtio 1.2 §2.7).

Theory of operation
-------------------
A queue is three tables in memory that both sides share. The *descriptor table* has the addresses
of buffers. The driver offers a buffer by writing the number of its first descriptor to the
*available ring* and incrementing `avail.idx`. The device gives it back through the *used ring*,
with the number of bytes that it wrote, and increments `used.idx`. Each index counts up for ever,
modulo 2**16; entry i of a ring is in slot i modulo the queue's size. Only one side writes each
table.

Some devices return a buffer that they may only read with the number of bytes that they read. The
driver ignores that number, as Linux does, because there is nothing in such a buffer to be written.

Both sides collect entries and make them visible at once (`publish`), with one write of an index
per batch. `publish` also returns True if the other side wants to be notified. That side can ask for
no notifications with a flag or, with EVENT_IDX, name the entry after which it wants one.

Neither side trusts what the other one wrote. A broken rule raises RemoteProtocolError with the
field and its value, and the queue cannot be used any more.

Memory order: entries are written before the index that announces them, and x86 keeps stores in
order. The only reordering on x86 is a store after a later load. It concerns a side that turns
notifications on and then looks for entries: `request_calls` and `request_kicks` look after the
store, and the interpreter's instructions in between drain the store buffer.
"""

from __future__ import annotations

from vconfs.protocol._device_queue import Chain, DeviceQueue, GuestMemory
from vconfs.protocol._driver_queue import DriverQueue
from vconfs.protocol._virtqueue_layout import (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    NO_NOTIFY,
    PARTS_MAX,
    SIZE_MAX,
    Layout,
    Segment,
)

__all__ = [
    "DESC_INDIRECT",
    "DESC_NEXT",
    "DESC_WRITE",
    "F_EVENT_IDX",
    "F_INDIRECT_DESC",
    "NO_NOTIFY",
    "PARTS_MAX",
    "SIZE_MAX",
    "Chain",
    "DeviceQueue",
    "DriverQueue",
    "GuestMemory",
    "Layout",
    "Segment",
]
