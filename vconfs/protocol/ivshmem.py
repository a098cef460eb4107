"""The protocol of QEMU's ivshmem server, which gives processes each other's doorbells.

A doorbell is an eventfd; each peer has one for each of its vectors. The server sends messages of
one le64 with at most one descriptor: the version, which is 0; the id of the receiving peer; -1 with
the memory that all share; then, for each vector of each peer, ourselves included, the peer's id
with the doorbell. Later, a peer's id without a descriptor means that it has left. See QEMU's
ivshmem-spec.txt.
"""

from __future__ import annotations

import struct
from typing import Final

from vconfs.protocol.errors import RemoteProtocolError

MESSAGE: Final = struct.Struct("<q")
_VERSION: Final = 0
_MEMORY: Final = -1
_ID_MAX: Final = 0xFFFF


class Peer:
    """A peer's view of what the server has sent."""

    def __init__(self) -> None:
        #: Our id, or None if it has not come yet.
        self.id: int | None = None
        #: Our doorbells, by vector.
        self.doorbells: list[int] = []
        self._greeted = False

    def receive(self, message: bytes, descriptor: int | None) -> bool:
        """Handle a message. Return True if its descriptor is one of our doorbells, to be kept."""
        (value,) = MESSAGE.unpack(message)
        if not self._greeted:
            if value != _VERSION:
                raise RemoteProtocolError(f"ivshmem: version {value}")
            self._greeted = True
        elif self.id is None:
            if not 0 <= value <= _ID_MAX:
                raise RemoteProtocolError(f"ivshmem: peer id {value}")
            self.id = value
        elif value == self.id and descriptor is not None:
            self.doorbells.append(descriptor)
            return True
        elif not _MEMORY <= value <= _ID_MAX:
            raise RemoteProtocolError(f"ivshmem: peer id {value}")
        return False

    def ring(self, vector: int) -> int:
        """Return the value that rings one of our doorbells when written to a doorbell register."""
        assert self.id is not None, "the server has not told it"
        return self.id << 16 | vector
