"""How many buffers of which size the guest end lends and fills, where the memory is its own."""

from __future__ import annotations

from vconfs.device._rings import QueueSpec

#: What a buffer costs is the handling of it, and large reads and writes are few large buffers.
#: The host's are the largest, for the guest end reads from them in place.
RECEIVE_QUEUE = QueueSpec(size=16, slot_size=(768 << 10) + 64, slots=8)
DATA_QUEUE = QueueSpec(size=16, slot_size=(1 << 18) + 64)
#: A port's own queue (virtio1): all of it is touched in time, and there may be 254 of them.
OWN_DATA_QUEUE = QueueSpec(size=8, slot_size=1 << 17, shared=False)
CONTROL_QUEUE = QueueSpec(size=64, slot_size=4096)


def queue_specs(count: int) -> dict[int, QueueSpec]:
    """Give the shapes of a device's queues: two for all ports (v8), or two for each."""
    if count == 2:
        return {0: RECEIVE_QUEUE, 1: DATA_QUEUE}
    return {n: CONTROL_QUEUE if n in (2, 3) else OWN_DATA_QUEUE for n in range(count)}
