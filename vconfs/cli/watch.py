"""vconfs watch: print a line per event of a mount's ports."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from attrs import frozen
from click.shell_completion import CompletionItem

from vconfs.cli._arguments import Mount, port_names, proposals
from vconfs.cli._find_port import places
from vconfs.cli._following import opened_file, read_chunks
from vconfs.cli._mount_table import why
from vconfs.cli.ls import has_peer, of_guest
from vconfs.errors import VconfsError
from vconfs.files.names import EVENTS_FILE
from vconfs.syntax.printable import printable

#: Event that --until can wait for → predicate on the port's last state (None: no such port).
_REACHED: dict[str, Callable[[dict[str, Any] | None], bool]] = {
    "add": lambda port: port is not None,
    "remove": lambda port: port is None,
    "connect": lambda port: port is not None and has_peer(port),
    "disconnect": lambda port: port is None or not has_peer(port),
    "open": lambda port: port is not None and port["open"],
    "close": lambda port: port is None or not port["open"],
    "throttle": lambda port: port is not None and port["throttled"],
    "unthrottle": lambda port: port is not None and not port["throttled"],
}


@frozen
class Goal:
    """EVENT=NAME: the state of a port at which `watch` ends."""

    event: str
    name: str

    def reached(self, ports: dict[tuple[str, int], dict[str, Any]]) -> bool:
        """True if the port is in that state, given the last line of every port."""
        found = (port for port in ports.values() if self.name in _names(port))
        return _REACHED[self.event](next(found, None))


def _names(port: dict[str, Any]) -> list[str]:
    guest = of_guest(port)
    names = [port["name"], port["port"]]
    return [*names, *(f"{guest}/{name}" for name in names)] if guest else names


def _goal(ctx: click.Context, param: click.Parameter, value: str | None) -> Goal | None:
    if value is None:
        return None
    event, equals, name = value.partition("=")
    if event not in _REACHED or not equals or not name:
        known = ", ".join(_REACHED)
        raise click.BadParameter(f"{value!r} is not EVENT=NAME, with one of {known}", ctx, param)
    in_events = os.fsencode(name).decode(errors="surrogateescape")  # UTF-8, whatever the locale
    return Goal(event, in_events)


def _propose_goals(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    names = sorted({name for place in places() for name in port_names(place)})
    goals = (f"{event}={name}" for event in _REACHED for name in names)
    return proposals(goals if "=" in incomplete else (f"{e}=" for e in _REACHED), incomplete)


@click.command("watch", short_help="Print a line per event of the ports of a mount.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per event.")
@click.option(
    "--until",
    "goal",
    callback=_goal,
    shell_complete=_propose_goals,
    metavar="EVENT=NAME",
    help="End after this event, or at once if the port is already in that state.",
)
@click.option(
    "--timeout", type=click.FloatRange(0), metavar="S", help="Fail after S seconds: exit code 1."
)
@click.argument("mountpoint", type=Mount())
def command(as_json: bool, goal: Goal | None, timeout: float | None, mountpoint: Path) -> None:
    """Print a line per event of the ports of the mount at MOUNTPOINT, until it is unmounted.

    \b
    The events are:
      add  remove  name  console        a port was added, removed, named, found to be a console
      connect  disconnect               the host opened its side, or hung up
      open  close                       the first program opened the port, the last one closed it
      throttle  unthrottle              the host wants no more data, or wants it again
      guest-throttle  guest-unthrottle  the guest wants no more data, or wants it again
      dropped                           bytes were lost by rule, at the guest or the host end
      lost                              the reader was too slow, and missed some events

    Of a mount with guests, MOUNTPOINT can also be the folder of one guest. There host and guest are
    swapped in these events, and more are:
      guest-add  guest-remove           there is a new guest, or one is there no more
      guest-connect  guest-disconnect   the guest has connected, or was lost

    NAME of --until is a port's name or file name, or GUEST/NAME. It can wait for add, remove,
    connect, disconnect, open, close, throttle and unthrottle.

    \b
    Examples:
      vconfs watch /mnt/vcon
      vconfs watch --until connect=org.example.chat --timeout 10 /mnt/vcon && echo hi >chat
      vconfs watch --json /mnt/vcon | jq -r 'select(.event == "throttle") | .name'
    """
    late = "" if timeout is None else f"timed out after {timeout:g} s"
    if timeout is not None and goal is not None:
        late += f" waiting for {goal.event}={goal.name}"
    deadline = None if timeout is None else time.monotonic() + timeout
    ports: dict[tuple[str, int], dict[str, Any]] = {}
    ready = False
    for line in _lines(mountpoint, deadline, late):
        event = json.loads(line)
        kind = event["event"]
        ready = ready or kind == "ready"
        if kind == "remove":
            ports.pop((of_guest(event), event["id"]), None)
        elif "id" in event:
            ports[of_guest(event), event["id"]] = event
        if kind not in ("guest-present", "present", "ready"):
            click.echo(json.dumps(event) if as_json else _describe(event))
            sys.stdout.flush()
        if ready and goal is not None and goal.reached(ports):
            return
    if goal is not None:
        raise VconfsError(f"{mountpoint} was unmounted before {goal.event}={goal.name}")


def _lines(mountpoint: Path, deadline: float | None, late: str) -> Iterator[str]:
    """Yield the lines of the mount's events, until it is unmounted.

    Raise VconfsError if it is not a mount, and with the message `late` after the deadline.
    """
    try:
        with opened_file(mountpoint, EVENTS_FILE) as file:
            rest = b""
            for data in read_chunks(file, deadline, late):
                *lines, rest = (rest + data).split(b"\n")
                yield from (line.decode() for line in lines)
    except PermissionError as error:
        raise why(mountpoint, error) from None


def _describe(event: dict[str, Any]) -> str:
    clock = datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S.%f")[:-3]
    if event["event"] == "lost":
        return f"{clock}  {event['event']:<18}{event['count']} events"
    guest = f"{of_guest(event):<9} " if of_guest(event) else ""
    if "id" not in event:
        return printable(f"{clock}  {event['event']:<18}{guest}".rstrip())
    line = f"{clock}  {event['event']:<18}{guest}{event['port']:<8}{event['name']}".rstrip()
    if event["event"] == "dropped":
        line += f"  {event['count']} bytes by the {event['by']}"
    return printable(line)
