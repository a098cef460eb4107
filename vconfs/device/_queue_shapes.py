"""The number and size of the guest end's buffers, for devices that use its own memory."""

from __future__ import annotations

from vconfs.device._slots import QueueSpec
from vconfs.protocol.v8 import HEADER

#: A buffer costs the same whatever its size, so large reads and writes use few large buffers. But
#: those that the host fills are used in turns, and copies are slower where they do not fit in the
#: cache of a CPU: with 6 MiB of them, large reads took twice as long as with 1.5 MiB. They hold
#: whole pages of data, so that all buffers of a large read begin at the same place in a page.
_SLOT = HEADER.size + (256 << 10)
RECEIVE_QUEUE = QueueSpec(size=16, slot_size=_SLOT, slots=6, header=HEADER.size)
#: Sent slots begin with a page: they are zeroed as a whole, and at another place in their page that
#: was a slow copy (see `_CACHE_LINE` in _slots.py).
DATA_QUEUE = QueueSpec(size=16, slot_size=_SLOT)
#: A port's own queue (virtio1). All its memory is used in time, and there can be 254 such queues.
OWN_DATA_QUEUE = QueueSpec(size=8, slot_size=1 << 17, shared=False)
CONTROL_QUEUE = QueueSpec(size=64, slot_size=4096)


def queue_specs(count: int) -> dict[int, QueueSpec]:
    """Return the shapes of a device's queues: two for all ports (v8), or two for each port."""
    if count == 2:
        return {0: RECEIVE_QUEUE, 1: DATA_QUEUE}
    return {n: CONTROL_QUEUE if n in (2, 3) else OWN_DATA_QUEUE for n in range(count)}
