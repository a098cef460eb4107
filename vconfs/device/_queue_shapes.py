"""The number and size of the guest end's buffers, for devices that use its own memory."""

from __future__ import annotations

from vconfs.device._slots import QueueSpec

#: A buffer costs the same whatever its size, so large reads and writes use few large buffers. But
#: those that the host fills are used in turns, and copies are slower where they do not fit in the
#: cache of a CPU: with 6 MiB of them, large reads took twice as long as with 1.5 MiB.
RECEIVE_QUEUE = QueueSpec(size=16, slot_size=(256 << 10) + 64, slots=6)
DATA_QUEUE = QueueSpec(size=16, slot_size=(1 << 18) + 64)
#: A port's own queue (virtio1). All its memory is used in time, and there can be 254 such queues.
OWN_DATA_QUEUE = QueueSpec(size=8, slot_size=1 << 17, shared=False)
CONTROL_QUEUE = QueueSpec(size=64, slot_size=4096)


def queue_specs(count: int) -> dict[int, QueueSpec]:
    """Return the shapes of a device's queues: two for all ports (v8), or two for each port."""
    if count == 2:
        return {0: RECEIVE_QUEUE, 1: DATA_QUEUE}
    return {n: CONTROL_QUEUE if n in (2, 3) else OWN_DATA_QUEUE for n in range(count)}
