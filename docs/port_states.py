"""A port's states, drawn from their table, and what a real port does in them. For `generate`."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable, Iterator
from typing import Final

import trio
from attrs import define

from vconfs.guest._port_states import STATES, Event, Host, State, Way
from vconfs.guest.port import Opener, Port
from vconfs.protocol.events import Buffer

_DATA: Final = memoryview(b"data")


@define
class _Line:
    """A device that takes all data, with back-pressure by messages or by a ring."""

    throttles: bool
    can_refuse: bool = False
    ring_is_full: bool = False
    in_flight: int = 1 << 20

    def has_room(self, port_id: int) -> bool:
        return not self.ring_is_full

    def want_room(self, port_id: int) -> None: ...

    def send_nowait(self, port_id: int, data: Buffer) -> int:
        if self.ring_is_full:
            raise trio.WouldBlock
        return len(data)

    def send_later(self, port_id: int, data: Buffer) -> int:
        raise trio.WouldBlock

    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        return len(data)

    def nudge(self, port_id: int) -> None: ...
    def open_port(self, port_id: int, opened: bool) -> None: ...
    def throttle(self, port_id: int, on: bool, seen: Callable[[], None]) -> None: ...
    def refill(self, port_id: int) -> None: ...


#: The events of a port, by their words in the diagram.
_HAPPENS: Final[dict[str, Callable[[Port], None]]] = {
    "host opens": lambda port: port.set_connected(True),
    "host hangs up": lambda port: port.set_connected(False),
    "THROTTLE 1": lambda port: port.set_throttled(True),
    "THROTTLE 0": lambda port: port.set_throttled(False),
    "device lost": lambda port: port.detach(),
    "port removed": lambda port: port.remove(),
    "data comes": lambda port: port.feed(_DATA),
    "ring is full": lambda port: port.attach(_Line(throttles=False, ring_is_full=True)),
}

#: The events so far -> the name of the state in the table.
_STATES: Final[dict[tuple[str, ...], str]] = {
    (): "no host",
    ("host opens",): "host connected",
    ("host opens", "data comes"): "host connected, data waits",
    ("host opens", "THROTTLE 1"): "host connected, throttles (v8)",
    ("host opens", "ring is full"): "host connected, ring full (virtio1)",
    ("host opens", "data comes", "host hangs up"): "hung up, data waits",
    ("THROTTLE 1",): "no host, throttled (v8)",
    ("device lost",): "device lost",
    ("host opens", "data comes", "port removed"): "port removed, data waits",
    ("port removed",): "port removed",
}


def _port(dialect: str, happened: tuple[str, ...]) -> Port:
    """Return an open port after these events."""
    port = Port(0)
    port.attach(_Line(throttles=dialect == "v8"))
    port.open(Opener(0))
    for what in happened:
        _HAPPENS[what](port)
    return port


def _outcome(call: Callable[[], object], something: str) -> str:
    try:
        result = call()
    except trio.WouldBlock:
        return "waits"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return something if result else "end of file"


def _write_outcome(port: Port) -> str:
    """Return the outcome of a blocking write, with the error that can end its wait."""
    outcome = _outcome(lambda: port.write_nowait(_DATA), "sends")
    if outcome == "waits":
        end = _outcome(lambda: port.write_nowait(_DATA, nonblock=True), "sends")
        return outcome if end == "waits" else f"waits, then {end}"
    return outcome


def _row(dialect: str, happened: tuple[str, ...]) -> tuple[str, str, str]:
    """Return what read, write and poll do with such a port."""
    reader, writer = _port(dialect, happened), _port(dialect, happened)
    names = ("POLLIN", "POLLOUT", "POLLERR", "POLLHUP")
    mask = reader.poll()
    return (
        _outcome(lambda: reader.read_nowait(100), "data"),
        _write_outcome(writer),
        " ".join(name for name in names if mask & getattr(select, name)) or "nothing",
    )


def _applies(dialect: str, happened: tuple[str, ...]) -> bool:
    only = {"THROTTLE 1": "v8", "ring is full": "virtio1"}
    return all(only.get(what, dialect) == dialect for what in happened)


def calls() -> str:
    """Return a table of what read, write and poll do in each state."""
    lines = ["| state | dialect | read | write | poll |\n", "|---|---|---|---|---|\n"]
    for happened, name in _STATES.items():
        spoken = [dialect for dialect in ("v8", "virtio1") if _applies(dialect, happened)]
        rows = {dialect: _row(dialect, happened) for dialect in spoken}
        if len(set(rows.values())) == 1:
            rows = {"both" if len(rows) == 2 else next(iter(rows)): next(iter(rows.values()))}
        lines += [f"| {name} | {dialect} | {' | '.join(row)} |\n" for dialect, row in rows.items()]
    return "".join(lines)


#: The states of the diagram, in words.
_WORDS: Final = {
    "no_host": "no host",
    "connected": "host connected",
    "throttled": "host connected, throttles",
    "throttled_alone": "no host, throttled",
    "device_lost": "device lost",
    "removed": "port removed",
}

_NAMES: Final = {
    Host.ABSENT: "no_host",
    Host.CONNECTED: "connected",
    Host.THROTTLES: "throttled",
    Host.THROTTLES_ABSENT: "throttled_alone",
}

#: What cannot happen to a v8 port, and what cannot while its device is away.
_NOT_IN_V8: Final = {Event.ATTACHED_BY_RING, Event.EMERGENCY_LINE}
_ONLY_AWAY: Final = {Event.ATTACHED_BY_MESSAGES}


def _name(state: State) -> str:
    if state.way is Way.REMOVED:
        return "removed"
    return "device_lost" if state.way is Way.NONE else _NAMES[state.host]


def _transitions() -> Iterator[tuple[str, str, str]]:
    """Yield (state, next state, event) for all states that a v8 port can reach."""
    coming = [STATES[Way.MESSAGES, Host.ABSENT]]
    seen = {_name(state) for state in coming}
    while coming:
        state = coming.pop(0)
        for event, after in state.after.items():
            is_away = state.way is Way.NONE
            if event in _NOT_IN_V8 or (event in _ONLY_AWAY) != is_away:
                continue
            if _name(after) != _name(state):
                yield _name(state), _name(after), event.value
            if _name(after) not in seen:
                seen.add(_name(after))
                coming.append(after)


def diagram() -> str:
    """Return a diagram of the states of a port and the events between them."""
    lines = ["```mermaid\n", "stateDiagram-v2\n", "    [*] --> no_host\n"]
    lines += [f"    {name}: {words}\n" for name, words in _WORDS.items()]
    lines += [f"    {here} --> {there}: {event}\n" for here, there, event in _transitions()]
    return "".join([*lines, "    removed --> [*]\n", "```\n"])
