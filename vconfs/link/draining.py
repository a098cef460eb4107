"""Delivering what was accepted before a mount, a host end or a port ends.

Theory of operation
-------------------
A byte is *accepted* when the call that brought it has succeeded: the write(2) of a guest's program,
or our read from a client of the host end. From then on it is owed to the other side, until it is
delivered or counted as dropped. At any time, for each port and each direction:

    accepted = delivered + dropped + owed

A byte is *delivered* when it arrives even if our process ends now:

- to a reader of the port's file, when a read has returned it;
- to the pty beside a port, when a program has read it: the kernel drops the rest when we close;
- to a unix socket, when the kernel has taken it: the kernel keeps it for the reader when we close;
- to a TCP socket, when the peer's kernel has acknowledged it: a close can lose the rest;
- to a pty, a fifo or a program's input, when it has been read: a close loses the rest
  (except that a fifo keeps it for a reader that has the fifo open);
- to a file, when write(2) has taken it;
- to the other end of a link, when that has taken it out of a ring; over a byte stream, by the rules
  above for sockets, ttys and programs.

An ending (an unmount, SIGTERM or SIGINT, `vconfs ctl remove` and `disconnect`) has five steps:

1. Nothing more is accepted. If a mount ends, its writers get ENOTCONN and its host is throttled; if
   a host end ends, its guest is throttled. We go on reading from the far side of a port only while
   we owe it data: a program that answers what it reads would otherwise stop reading.
2. `drain` waits until nothing is owed. Everything else continues meanwhile: the mount is served,
   readers read, clients take data. `drain` gives up a port that has made no progress for the time
   that the user allows (`-o drain=TIME` of a mount, `--drain TIME` of a host end), and returns when
   there is nothing left to wait for. It does not wait for data without a receiver: data for a port
   with no client, or for a file with no reader.
3. Ports hang up: readers and clients get end of file. What is still owed is counted as dropped,
   wherever it is: in a queue, in a ring that the peer has not read, in the kernel.
4. The other end of the link, if there is one, is told that we leave, and has the same time to take
   what is on its way: it ends the stream then, or leaves the rings alone. What still comes from it
   is received. A program that is the stream gets end of file, and time to end by itself.
5. One log line says how many bytes of which ports were dropped since step 1.

A second signal, and `vconfs umount -f`, skip the rest of steps 2 and 4.

A connection to a guest or a host that is lost is not drained. Queued data stays for the next
connection where there can be one: at the host end for the chardev, at the guest end for readers.
Data that the peer sent is received, however full a port is. Data that was sent on the connection
and that the peer had not taken is counted as dropped and logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeVar

import trio

#: Seconds without progress after which a port is given up.
DRAIN_TIME: Final = 5.0
#: Seconds between two looks at what is owed: the kernel does not report when a reader has read.
_FIRST_PAUSE: Final = 0.002
_LAST_PAUSE: Final = 0.02
#: The most ports that are named in one log line.
_NAMED_MAX: Final = 20

P = TypeVar("P")


async def drain(owed: Callable[[], Mapping[P, int]], patience: float) -> bool:
    """Wait until no port owes anything, or each that does has made no progress for `patience`.

    Return False if some ports still owe something. A port makes progress when it owes less than
    ever before, so this returns even if new data keeps coming.
    """
    least: dict[P, tuple[int, float]] = {}
    pause = _FIRST_PAUSE
    settled = 0  # how many times in a row nothing was owed
    while settled < 2:  # twice: bytes can be on their way from one queue to the next
        now = trio.current_time()
        waiting = False
        sizes = owed()
        for port, size in sizes.items():
            if port not in least or size < least[port][0]:
                least[port] = size, now
            waiting = waiting or (size > 0 and now - least[port][1] < patience)
        if any(sizes.values()):
            settled = 0
            if not waiting:
                return False
        else:
            settled += 1
        await trio.sleep(pause if settled == 0 else _LAST_PAUSE)
        pause = min(2 * pause, _LAST_PAUSE)
    return True


def say_what_was_lost(log: logging.Logger, what: str, lost: Iterable[tuple[str, int]]) -> None:
    """Log in one line how many bytes of which ports were dropped, if any were."""
    ports = [(port, size) for port, size in lost if size > 0]
    if not ports:
        return
    names = [f"{size} of {port}" for port, size in ports[:_NAMED_MAX]]
    if more := len(ports) - len(names):
        names.append(f"the rest of {more} other ports")
    total = sum(size for _, size in ports)
    log.warning("%s: %d bytes were dropped, not delivered: %s", what, total, ", ".join(names))
