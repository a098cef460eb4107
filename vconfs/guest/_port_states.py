"""The states of a port, the events that change them, and what its calls do in each.

Theory of operation
-------------------
A state is a pair: how the port's output leaves (`Way`), and what its host does (`Host`). Each half
has a table of its own, `WAYS` and `HOSTS`: which event leads from where to where. An event that is
not in the table changes nothing there, and one event may change both halves. Nothing leads out of
`Way.REMOVED`.

What a call does depends on the pair alone, and on what is queued: `WRITES` says what a write does,
`READS` what a read of an empty port does, `POLLS` what a poll shows beside data and room. `STATES`
has all of it for each pair, worked out once, so that a port looks at one object.

This module is pure: the tables are read by `Port`, its inbox and its outbox, by the tests, and by
the page that shows them as a diagram.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Mapping
from enum import Enum
from itertools import product
from typing import Final

from attrs import define, field

READABLE: Final = select.POLLIN | select.POLLRDNORM
WRITABLE: Final = select.POLLOUT | select.POLLWRNORM


class Way(Enum):
    """How the output of a port leaves."""

    NONE = "the device is away"
    EMERGENCY = "the device is there, the port is not: by the emergency line of a console"
    MESSAGES = "to a host that throttles the port by messages (v8)"
    RING = "to a host that throttles the port by its full ring (virtio1)"
    REMOVED = "the host took the port away"


class Host(Enum):
    """What the host does with a port."""

    ABSENT = "its side is closed"
    CONNECTED = "its side is open"
    THROTTLES = "its side is open, and it wants no data"
    THROTTLES_ABSENT = "its side is closed, and it wants no data"


class Event(Enum):
    """What can happen to a port."""

    HOST_OPENS = "host opens"
    HOST_HANGS_UP = "host hangs up"
    THROTTLE = "THROTTLE 1"
    UNTHROTTLE = "THROTTLE 0"
    ATTACHED_BY_MESSAGES = "device back"
    ATTACHED_BY_RING = "device back (virtio1)"
    EMERGENCY_LINE = "device back, without this port"
    DEVICE_LOST = "device lost"
    REMOVED = "port removed"


_ATTACHED: Final = {
    Event.ATTACHED_BY_MESSAGES: Way.MESSAGES,
    Event.ATTACHED_BY_RING: Way.RING,
}
_GONE: Final = {Event.DEVICE_LOST: Way.NONE, Event.REMOVED: Way.REMOVED}

#: Where each event leads from each way.
WAYS: Final[Mapping[Way, Mapping[Event, Way]]] = {
    Way.NONE: {**_ATTACHED, Event.EMERGENCY_LINE: Way.EMERGENCY, Event.REMOVED: Way.REMOVED},
    Way.EMERGENCY: {**_ATTACHED, **_GONE},
    Way.MESSAGES: {**_ATTACHED, **_GONE},
    Way.RING: {**_ATTACHED, **_GONE},
    Way.REMOVED: {},
}

#: Where each event leads from what the host does. A new device's host throttles nothing.
HOSTS: Final[Mapping[Host, Mapping[Event, Host]]] = {
    Host.ABSENT: {
        Event.HOST_OPENS: Host.CONNECTED,
        Event.THROTTLE: Host.THROTTLES_ABSENT,
    },
    Host.CONNECTED: {
        Event.HOST_HANGS_UP: Host.ABSENT,
        Event.THROTTLE: Host.THROTTLES,
        Event.DEVICE_LOST: Host.ABSENT,
        Event.REMOVED: Host.ABSENT,
    },
    Host.THROTTLES: {
        Event.HOST_HANGS_UP: Host.THROTTLES_ABSENT,
        Event.UNTHROTTLE: Host.CONNECTED,
        Event.ATTACHED_BY_MESSAGES: Host.CONNECTED,
        Event.ATTACHED_BY_RING: Host.CONNECTED,
        Event.DEVICE_LOST: Host.ABSENT,
        Event.REMOVED: Host.THROTTLES_ABSENT,
    },
    Host.THROTTLES_ABSENT: {
        Event.HOST_OPENS: Host.THROTTLES,
        Event.UNTHROTTLE: Host.ABSENT,
        Event.ATTACHED_BY_MESSAGES: Host.ABSENT,
        Event.ATTACHED_BY_RING: Host.ABSENT,
        Event.DEVICE_LOST: Host.ABSENT,
    },
}


class Write(Enum):
    """What a write does. The errors end the wait of a write whose patience is over."""

    SENDS = 0  # if the line has room
    WAITS = -1  # for the host, without a limit
    ENOSPC = errno.ENOSPC
    ENOTCONN = errno.ENOTCONN
    ENODEV = errno.ENODEV  # at once


class Read(Enum):
    """What a read of an empty port does."""

    WAITS = "waits"
    ENDS = "end of file"  # with `PortOptions.wait`, it waits
    ENODEV = "ENODEV"


def _for_all(write: Write) -> Mapping[Host, Write]:
    return dict.fromkeys(Host, write)


_WRITES_OF_MESSAGES: Final = {
    Host.ABSENT: Write.SENDS,
    Host.CONNECTED: Write.SENDS,
    Host.THROTTLES: Write.ENOSPC,
    Host.THROTTLES_ABSENT: Write.ENOSPC,
}

WRITES: Final[Mapping[Way, Mapping[Host, Write]]] = {
    Way.NONE: _for_all(Write.ENOTCONN),
    Way.EMERGENCY: _WRITES_OF_MESSAGES,
    Way.MESSAGES: _WRITES_OF_MESSAGES,
    Way.RING: {**_for_all(Write.WAITS), Host.CONNECTED: Write.SENDS},
    Way.REMOVED: _for_all(Write.ENODEV),
}

READS: Final[Mapping[Host, Read]] = {
    Host.ABSENT: Read.ENDS,
    Host.CONNECTED: Read.WAITS,
    Host.THROTTLES: Read.WAITS,
    Host.THROTTLES_ABSENT: Read.ENDS,
}

#: What a poll shows if there is neither data nor room, by way and by "the host is connected".
POLLS: Final[Mapping[Way, Mapping[bool, int]]] = {
    Way.NONE: {True: 0, False: select.POLLHUP},
    Way.EMERGENCY: {True: 0, False: select.POLLHUP},
    Way.MESSAGES: {True: 0, False: select.POLLHUP},
    # The standard's driver reports end of file as readable.
    Way.RING: {True: 0, False: select.POLLHUP | READABLE},
    Way.REMOVED: dict.fromkeys((True, False), select.POLLHUP | select.POLLERR),
}


@define(eq=False)
class State:
    """One state of a port, with what its calls do in it. There is one object for each state."""

    way: Way
    host: Host
    connected: bool = field(init=False)
    throttled: bool = field(init=False)
    removed: bool = field(init=False)
    #: True if a write sends what there is room for.
    sends: bool = field(init=False)
    #: The error that ends the wait of a write, or 0: it waits without a limit.
    refusal: int = field(init=False)
    #: What a read of an empty port does.
    read: Read = field(init=False)
    #: What a poll shows if there is neither data nor room.
    poll: int = field(init=False)
    #: The next state, for each event that changes this one.
    after: Mapping[Event, State] = field(init=False, factory=dict, repr=False)

    def __attrs_post_init__(self) -> None:
        write = WRITES[self.way][self.host]
        self.connected = self.host in (Host.CONNECTED, Host.THROTTLES)
        self.throttled = self.host in (Host.THROTTLES, Host.THROTTLES_ABSENT)
        self.removed = self.way is Way.REMOVED
        self.sends = write is Write.SENDS
        self.refusal = max(write.value, 0)
        self.read = Read.ENODEV if self.removed else READS[self.host]
        self.poll = POLLS[self.way][self.connected]


STATES: Final = {pair: State(*pair) for pair in product(Way, Host)}


def _states_after(state: State) -> dict[Event, State]:
    ways, hosts = WAYS[state.way], HOSTS[state.host]
    return {
        event: STATES[ways.get(event, state.way), hosts.get(event, state.host)]
        for event in Event
        if event in ways or event in hosts
    }


for _state in STATES.values():
    _state.after = _states_after(_state)

#: A new port has no device yet.
FIRST: Final = STATES[Way.NONE, Host.ABSENT]
