"""How processes get each other's doorbells: the server of QEMU's ivshmem (its ivshmem-spec.txt).

A doorbell is an eventfd; each peer has one for each of its vectors. The server sends messages of
one le64 with at most one descriptor: the version, which is 0; the id of the peer that it talks to;
-1 with memory for all; then, for each vector of each peer, the peer's id with the doorbell, ours
among them. Later a peer's id alone says that it has left.
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
    """One peer, by what the server has told it."""

    def __init__(self) -> None:
        #: Our id; None: it has not come.
        self.id: int | None = None
        #: Our doorbells, by vector.
        self.doorbells: list[int] = []
        self._greeted = False

    def receive(self, message: bytes, descriptor: int | None) -> bool:
        """Take in one message; whether its descriptor is ours to keep."""
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
        """What is written to a doorbell register to ring one of ours."""
        assert self.id is not None, "the server has not told it"
        return self.id << 16 | vector
