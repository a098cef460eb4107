"""Data that shows where it belongs, so that lost, doubled and misplaced bytes are found.

Each direction of a port is a `Track`. Its sender works in sessions: each starts with a mark, which
names the port, the direction and the session, and goes on with random bytes, among which there is
no mark. What comes has to be what was sent, byte by byte. Only where one of the two was killed
may something be missing: a new sender begins a new session; a new receiver finds its place by the
bytes that come first.
"""

from __future__ import annotations

import random

MARK = 0xFF
_MARK_SIZE = 6
#: The number of bytes that identify a position.
_PROBE = 16
_NO_MARKS = bytes.maketrans(bytes([MARK]), b"\0")


class Track:
    """One direction of one port: what was sent, and how far it has come."""

    def __init__(self, port: int, upward: bool) -> None:
        self.received = 0
        self._name = bytes([port, upward])
        self._sent: list[bytearray] = []
        self._trimmed = 0  # bytes that are gone from the session that is being received
        self._numbers = random.Random()
        self._session = 0
        self._at = 0
        self._lost = True  # we do not know where we are
        self._rest = b""  # too little to make anything of it

    def begin(self) -> bytes:
        """Start a new session, for the sender before was killed; give what it sends first."""
        session = len(self._sent)
        self._numbers.seed(self._name + b"%d" % session)
        number = session >> 14, session >> 7 & 127, session & 127
        mark = bytes([MARK, *self._name, *number])
        self._sent.append(bytearray(mark))
        return mark

    def more(self, size: int) -> bytes:
        """Return the next data to send."""
        data = self._numbers.randbytes(size).translate(_NO_MARKS)
        self._sent[-1] += data
        return data

    def resume(self) -> None:
        """Start to receive anew, for the receiver before was killed, or there was none."""
        if not self._sent:
            return
        assert any(self._rest in sent for sent in self._sent[self._session :]), self._where()
        self._rest = b""
        self._lost = True

    def take(self, data: bytes) -> None:
        """Check what came."""
        self.received += len(data)
        data, self._rest = self._rest + data, b""
        while data:
            end = data.find(MARK, 1)
            run = data if end < 0 else data[:end]
            if (run[0] == MARK and len(run) < _MARK_SIZE) or (self._lost and len(run) < _PROBE):
                if end < 0:
                    self._rest = data
                    return
                data = data[end:]  # torn where a process was killed
                continue
            if run[0] == MARK:
                self._start(run)
            elif self._lost:
                self._find(run[:_PROBE])
            start = self._at - self._trimmed
            assert run == self._sent[self._session][start : start + len(run)], self._where()
            self._at += len(run)
            data = data[len(run) :]
        self._trim()

    def _start(self, run: bytes) -> None:
        assert run[1:3] == self._name, f"a mark of port {run[1]} came: {self._where()}"
        session = run[3] << 14 | run[4] << 7 | run[5]
        assert session >= self._session + (not self._lost), self._where()
        for over in range(self._session, min(session, len(self._sent))):
            self._sent[over].clear()
        self._session, self._at, self._trimmed, self._lost = session, 0, 0, False

    def _find(self, probe: bytes) -> None:
        at = self._sent[self._session].find(probe, self._at - self._trimmed)
        while at < 0 and self._session < len(self._sent) - 1:
            self._session += 1
            self._at = self._trimmed = 0
            at = self._sent[self._session].find(probe)
        assert at >= 0, f"bytes that were never sent: {self._where()}"
        self._at, self._lost = at + self._trimmed, False

    def _trim(self) -> None:
        if (spent := self._at - self._trimmed) > 1 << 20:
            del self._sent[self._session][:spent]
            self._trimmed = self._at

    def _where(self) -> str:
        port, upward = self._name
        way = "guest to host" if upward else "host to guest"
        return f"port {port}, {way}, session {self._session}, byte {self._at}"
