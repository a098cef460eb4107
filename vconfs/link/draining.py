"""How an ending lets out what was accepted.

Theory of operation
-------------------
A byte is *accepted* when the call that brought it has succeeded: the write(2) of a guest's program,
or our read from a client of the host end. From then on it is owed to the other side, until it is
there or is counted as dropped. At any time, of each port and each direction:

    accepted = delivered + dropped + owed

It is *delivered* when an end of ours is no longer needed to bring it there:

- to a reader of the port's file, when a read has returned it;
- to the pty beside a port, when a program has read it there: its kernel loses the rest with us;
- to a unix socket, when the kernel has taken it, which keeps it for its reader when we close;
- to a TCP socket, when the peer's kernel has acknowledged it: a close can cost it what it has not;
- to a pty, a fifo or a program's input, when it has been read: what we close loses the rest
  (a fifo keeps it for a reader that has it open, and then that is no loss);
- to a file, when write(2) has taken it.

An ending (an unmount, SIGTERM or SIGINT, `vconfs ctl remove` and `disconnect`) goes like this:

1. Nothing more is accepted. Writers of a mount that ends get ENOTCONN, and its host is throttled;
   the guest of a host end that ends is throttled. The far side of a port is listened to only for as
   long as it is owed something itself: a program that answers what it reads would else not read on.
2. `drain` waits until nothing is owed. Everything else goes on meanwhile: the mount is served,
   readers read, clients take. It gives up a port that has not come closer to its end for the time
   that the user allows (`-o drain=TIME` of a mount, `--drain TIME` of a host end), and ends when
   there is nothing left to wait for. What nobody is there to take is not waited for: data for a
   port with no client, or for a file with no reader.
3. Ports hang up: readers get end of file, clients theirs. What is still owed is counted as dropped,
   where it is found: in a queue, in a ring that the peer has not read, in the kernel.
4. One line says how many bytes of which ports were dropped since 1.

A second signal, and `vconfs umount -f`, skip the rest of 2.

A connection to a guest or a host that is lost has no such time. What is queued stays for the next
one where there can be one: at the host end for the chardev, at the guest end for readers. What had
been sent on the connection and the peer had not taken is counted as dropped, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeVar

import trio

#: Seconds without progress after which an ending gives a port up.
DRAIN_TIME: Final = 5.0
#: Seconds from one look at what is owed to the next: no kernel tells when somebody has read.
_FIRST_PAUSE: Final = 0.002
_LAST_PAUSE: Final = 0.02
#: So many ports are named in one line.
_NAMED_MAX: Final = 20

P = TypeVar("P")


async def drain(owed: Callable[[], Mapping[P, int]], patience: float) -> bool:
    """Wait until no port owes anything, or each that does has made no progress for `patience`.

    False: some still owe something. Progress is a port that owes less than ever before, so that
    this ends whatever else comes in.
    """
    least: dict[P, tuple[int, float]] = {}
    pause = _FIRST_PAUSE
    settled = 0  # how often nothing was owed, one look after the other
    while settled < 2:  # twice: bytes can be on their way between two places
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
