#!/usr/bin/env python3
"""A message bus for guests: a message goes to all other subscribers of its topic.

    host:   vconfs … --port bus=seqpacket:/run/bus-a …       one such port for each guest
            bus.py /run/bus-a /run/bus-b …
    guest:  exec 3<>/mnt/vcon/by-name/bus
            echo '+news' >&3; read -r done <&3; echo 'weather dry' >&3; read -r message <&3

It relies on message boundaries: each write of a guest arrives here as one packet, so messages need
no separator and do not mix. A packet "+TOPIC" subscribes and "-TOPIC" unsubscribes; both are sent
back when that is done. "TOPIC TEXT" goes unchanged to all other subscribers of TOPIC. The bus ends
when the last guest has gone.
"""

from __future__ import annotations

import selectors
import signal
import socket
import sys

#: The longest message; longer ones would be cut, and are refused.
_MESSAGE_MAX = 1 << 16


class Bus:
    """The connected ports, and the topics that each has subscribed to."""

    def __init__(self) -> None:
        self._topics: dict[socket.socket, set[bytes]] = {}
        self._ready = selectors.DefaultSelector()

    def join(self, path: str) -> None:
        """Add the guest whose port has this socket. Raise OSError if that fails."""
        guest = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        guest.connect(path)
        guest.setblocking(False)
        self._topics[guest] = set()
        self._ready.register(guest, selectors.EVENT_READ)

    def run(self) -> None:
        """Deliver messages until no guest is left."""
        while self._topics:
            for key, _ in self._ready.select():
                guest = key.fileobj
                assert isinstance(guest, socket.socket)
                try:
                    packet, _, flags, _ = guest.recvmsg(_MESSAGE_MAX)
                except OSError:
                    packet, flags = b"", 0
                if not packet:
                    self._leave(guest)
                elif flags & socket.MSG_TRUNC:
                    print(f"a message of more than {_MESSAGE_MAX} bytes", file=sys.stderr)
                else:
                    self._take(guest, packet)

    def _leave(self, guest: socket.socket) -> None:
        del self._topics[guest]
        self._ready.unregister(guest)
        guest.close()

    def _take(self, guest: socket.socket, packet: bytes) -> None:
        word, _, _ = packet.strip().partition(b" ")
        if word.startswith((b"+", b"-")):
            change = (
                self._topics[guest].add if word.startswith(b"+") else self._topics[guest].discard
            )
            change(word[1:])
            self._send(guest, packet)
        else:
            for other, topics in self._topics.items():
                if other is not guest and word in topics:
                    self._send(other, packet)

    def _send(self, guest: socket.socket, packet: bytes) -> None:
        """Send a message, unless its reader is too slow: the others would have to wait."""
        try:
            guest.send(packet)
        except OSError as error:
            print(f"a message was not delivered: {error.strerror}", file=sys.stderr)


def main() -> None:
    """Join the guests, and run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    if len(sys.argv) < 2:
        sys.exit("usage: bus.py SOCKET…")
    bus = Bus()
    for path in sys.argv[1:]:
        try:
            bus.join(path)
        except OSError as error:
            sys.exit(f"{path}: {error.strerror}")
    print(f"joining {len(sys.argv) - 1} guests", flush=True)
    bus.run()


if __name__ == "__main__":
    main()
