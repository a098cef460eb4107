"""vconfs top: what the ports of a mount are doing, live."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import click
from attrs import define, field
from rich.console import Group
from rich.live import Live
from rich.text import Text

from vconfs.cli._arguments import Mount
from vconfs.cli._keys import Keys, reading_keys
from vconfs.cli._streams import is_dumb
from vconfs.cli._tables import Column, Table, open_console, print_table
from vconfs.cli.ls import dropped, has_peer, of_guest, read_ports, state

#: Rates of a port that its history shows.
_HISTORY: Final = 8
#: Seconds until the second picture, which is the first with rates.
_SOON: Final = 0.3
#: Lines on the screen that are not ports: the heading, and the line below the table.
_FRAME: Final = 2
_BARS: Final = "▁▂▃▄▅▆▇█"
_PLAIN_BARS: Final = "_.-=+*%#"

_Port = dict[str, Any]
#: The name of the guest, if it is the host's side of its port, and the id.
_Key = tuple[str, int]


@click.command("top", short_help="Show rates and queues of ports, live.")
@click.option(
    "--interval",
    type=click.FloatRange(0.05),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds between two tables.",
)
@click.option("--count", "looks", type=click.IntRange(1), metavar="N", help="End after N tables.")
@click.argument("mountpoint", type=Mount())
def command(interval: float, looks: int | None, mountpoint: Path) -> None:
    """Show rates, queues and states of the ports of the mount at MOUNTPOINT.

    On a terminal the table is updated in place, the busiest ports first; elsewhere each table is
    printed whole, in the order of the ports. DROPPED, the bytes that were lost by rule, is shown
    only if there are any.

    \b
    Keys:
      q, Ctrl-C            end
      s                    sort by rate, by queue, by number of the port
      arrows, PgUp, PgDn   scroll

    \b
    Examples:
      vconfs top /mnt/vcon
      vconfs top --count 2 --interval 10 /mnt/vcon >>ports.log
    """
    rates = _Rates()
    if looks is None and os.isatty(0) and os.isatty(1) and not is_dumb():
        _show_live(mountpoint, rates, interval)
        return
    for look in count(1):
        ports = rates.measure(_read(mountpoint))
        print_table(_table(ports, rates, shows_history=False))
        if look == looks:
            return
        time.sleep(interval)


def _show_live(mountpoint: Path, rates: _Rates, interval: float) -> None:
    """Show the table on the whole screen until the user ends it."""
    console = open_console()
    view = _View()
    with reading_keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        for look in count():
            ports = rates.measure(_read(mountpoint))
            due = time.monotonic() + (interval if look else min(interval, _SOON))
            while True:
                room = max(1, console.size.height - _FRAME)
                live.update(view.picture(ports, rates, room), refresh=True)
                key = keys.next(due - time.monotonic())
                if key is None:
                    break
                if key == "q":
                    return
                view.answer(key, room)


def _read(mountpoint: Path) -> list[_Port]:
    return [port for port in read_ports(mountpoint) if "id" in port]


def _key(port: _Port) -> _Key:
    return of_guest(port), port["id"]


@define
class _Rates:
    """The rates of the ports now and before, in bytes per second."""

    _before: dict[_Key, _Port] = field(factory=dict)
    _then: float = 0.0
    _now: dict[_Key, tuple[float, float]] = field(factory=dict)
    _history: dict[_Key, deque[float]] = field(factory=dict)

    def measure(self, ports: list[_Port]) -> list[_Port]:
        """Take note of the counters of the ports; return the ports."""
        now = time.monotonic()
        seconds = now - self._then
        self._now = {
            _key(port): (
                max(0, port["bytes_in"] - old["bytes_in"]) / seconds,
                max(0, port["bytes_out"] - old["bytes_out"]) / seconds,
            )
            for port in ports
            if (old := self._before.get(_key(port))) is not None
        }
        for key, (came, went) in self._now.items():
            self._history.setdefault(key, deque(maxlen=_HISTORY)).append(came + went)
        self._before, self._then = {_key(port): port for port in ports}, now
        return ports

    def of(self, port: _Port) -> tuple[float, float] | None:
        """Return the rates in and out, or None if the port was not there before."""
        return self._now.get(_key(port))

    def total(self, port: _Port) -> float:
        """Return the rate of both directions."""
        return sum(self.of(port) or (0.0,))

    def history(self, port: _Port, bars: str) -> str:
        """Return the last rates as bars, of which the highest is the port's own maximum."""
        past = self._history.get(_key(port), ())
        most = max(past, default=0.0)
        if not most:
            return ""
        return "".join(bars[round(rate / most * (len(bars) - 1))] for rate in past)


@define
class _View:
    """The part of the table that is on the screen."""

    _offset: int = 0
    _order: int = 0

    def picture(self, ports: Sequence[_Port], rates: _Rates, room: int) -> Group:
        """Return `room` rows of the table, and a line that says what is not shown."""
        orders: dict[str, Callable[[_Port], Any]] = {
            "rate": lambda port: (-rates.total(port), _key(port)),
            "queue": lambda port: (-port["queued"], _key(port)),
            "port": _key,
        }
        by = list(orders)[self._order]
        self._offset = max(0, min(self._offset, len(ports) - room))
        shown = sorted(ports, key=orders[by])[self._offset : self._offset + room]
        below = len(ports) - self._offset - len(shown)
        parts = [f"{self._offset} above"] * (self._offset > 0) + [f"{below} more"] * (below > 0)
        line = "  ".join((*parts, f"sorted by {by}", "q: end  s: sort"))
        return Group(
            _table(shown, rates, shows_history=True), Text(line, style="dim", no_wrap=True)
        )

    def answer(self, key: str, room: int) -> None:
        """Do what a key asks for."""
        if key == "s":
            self._order, self._offset = (self._order + 1) % 3, 0
        steps: Mapping[str, int] = {
            Keys.UP: -1,
            "k": -1,
            Keys.DOWN: 1,
            "j": 1,
            Keys.PAGE_UP: -room,
            Keys.PAGE_DOWN: room,
            " ": room,
        }
        self._offset += steps.get(key, 0)


def _table(ports: Sequence[_Port], rates: _Rates, *, shows_history: bool) -> Table:
    shows_dropped, shows_guest = any(map(dropped, ports)), any(map(of_guest, ports))
    bars = _bars() if shows_history else ""
    table = Table(
        [
            *[Column("GUEST")] * shows_guest,
            Column("PORT"),
            Column("NAME"),
            Column("PEER" if shows_guest else "HOST", rank=5),
            Column("IN/S", is_number=True),
            Column("OUT/S", is_number=True),
            *[Column("HISTORY", rank=4)] * shows_history,
            Column("QUEUED", rank=3, is_number=True),
            Column("FILL", rank=2, is_number=True),
            *[Column("DROPPED", is_number=True)] * shows_dropped,
            Column("STATE", rank=1),
        ]
    )
    for port in ports:
        guest = [of_guest(port) or "-"] * shows_guest
        table.add_row([*guest, *_cells(port, rates, bars, shows_dropped)])
    return table


def _cells(port: _Port, rates: _Rates, bars: str, shows_dropped: bool) -> Iterator[object]:
    """Yield the cells of a row; without `bars`, there is no history."""
    rate = rates.of(port)
    yield port["port"]
    yield port.get("name", "-")
    yield "connected" if has_peer(port) else "-"
    yield from map(readable_size, rate) if rate else ("-", "-")
    if bars:
        yield rates.history(port, bars)
    yield readable_size(port["queued"])
    yield f"{100 * port['queued'] // port['limit']}%"
    if shows_dropped:
        yield readable_size(dropped(port))
    yield state(port)


def _bars() -> str:
    """Return the characters of a history; those of ASCII where the terminal has no others."""
    encoding = open_console().encoding
    try:
        _BARS.encode(encoding)
    except UnicodeEncodeError:
        return _PLAIN_BARS
    return _BARS


def readable_size(size: float) -> str:
    """Return a number of bytes with at most four digits: 999, 1.5K, 20M."""
    for unit in ("", "K", "M", "G"):
        if size < 1000:
            return f"{size:.1f}{unit}" if unit and size < 10 else f"{size:.0f}{unit}"
        size /= 1024
    return f"{size:.0f}T"
