"""vconfs ctl: look at the ports of a running host end, and change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from vconfs.cli._arguments import File, parsed_by, proposals
from vconfs.cli._control_client import ask, ask_to_tap
from vconfs.cli._port_spec import PortSpec
from vconfs.cli._tapping import Style, read_records, show, style_options
from vconfs.errors import VconfsError
from vconfs.protocol.control import (
    Add,
    Cache,
    Disconnect,
    GuestAdd,
    GuestList,
    GuestRemove,
    Limit,
    List,
    Remove,
    Rename,
    Request,
    Resize,
    Tap,
    Throttle,
)
from vconfs.protocol.v8 import LIMIT_MAX
from vconfs.syntax.sizes import parse_mebibytes


def _address(word: str) -> int | str:
    """Parse a port's id or name; digits alone are an id."""
    return int(word) if word.isascii() and word.isdigit() else word


def _socket_of(ctx: click.Context) -> Path:
    """Return the path of the control socket, which is an argument of the outermost group."""
    while "path" not in ctx.params and ctx.parent is not None:
        ctx = ctx.parent
    path: Path = ctx.params["path"]
    return path


def _propose_ports(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """Propose the names of the host end's ports, and the ids of ports without a name."""
    try:
        ports = ask(_socket_of(ctx), List(guest=ctx.params.get("guest")))
    except VconfsError:
        return []
    return proposals((port["name"] or str(port["id"]) for port in ports), incomplete)


_port = click.argument("port", type=_address, shell_complete=_propose_ports)
_switch = click.argument("switch", type=click.Choice(["on", "off"]), metavar="on|off")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per port.")


def _propose_guests(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """Propose the names of the host end's guests."""
    try:
        guests = ask(_socket_of(ctx), GuestList())
    except VconfsError:
        return []
    return proposals((guest["name"] for guest in guests if guest["name"]), incomplete)


_guest = click.option(
    "--guest",
    shell_complete=_propose_guests,
    metavar="NAME",
    help="Guest whose port it is, if there are several.",
)


@click.group("ctl", invoke_without_command=True, short_help="Control a running host end.")
@click.argument("path", type=File(path_type=Path))
@click.pass_context
def command(ctx: click.Context, path: Path) -> None:
    """Control the host end that runs with `--control PATH`; without a command, list its ports.

    It is that of `vconfs host`, or that of a mount with ports of its own. PORT is a port's id, a
    number, or its name; if there are several guests, --guest says whose. Every command takes effect
    at once, for the attached guest and for later ones.

    \b
    Examples:
      vconfs ctl /run/vcon.ctl list
      vconfs ctl /run/vcon.ctl add org.example.chat=unix:/run/chat.sock
      vconfs ctl /run/vcon.ctl throttle org.example.chat on
      vconfs ctl /run/vcon.ctl list --json | jq -r 'select(.guest == "open") | .name'
    """
    ctx.obj = path  # the commands below get it as well
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_ports, as_json=False, guest=None)


def _carry_out(request: Request, as_json: bool) -> list[dict[str, Any]]:
    """Send the request; with --json, print the ports, or guests, of the reply."""
    them = ask(click.get_current_context().obj, request)
    if as_json:
        for one in them:
            click.echo(json.dumps(one))
    return them


@command.command("list", short_help="List the ports and what they are doing.")
@_as_json
@_guest
def list_ports(as_json: bool, guest: str | None) -> None:
    """List the ports, their chardevs, and what they are doing.

    Without --guest, the ports of all guests are listed.
    DROPPED, the bytes that were lost by rule, is shown only if there are any.

    \b
    Examples:
      vconfs ctl /run/vcon.ctl list
      vconfs ctl /run/vcon.ctl list --json
    """
    ports = _carry_out(List(guest=guest), as_json)
    if not as_json:
        _print_table(ports)


@command.command("add")
@_as_json
@_guest
@click.argument("spec", metavar="NAME=CHARDEV[,OPTION…]", shell_complete=PortSpec().shell_complete)
def add(as_json: bool, guest: str | None, spec: str) -> None:
    """Add a port, and print its id.

    The syntax is that of --port of `vconfs host`; paths are those of the host end.

    \b
    Example:
      vconfs ctl /run/vcon.ctl add org.example.chat=unix:/run/chat.sock,cache
    """
    ports = _carry_out(Add(spec, guest=guest), as_json)
    if not as_json:
        for port in ports:
            click.echo(port["id"])


@command.command("remove")
@_as_json
@_guest
@_port
def remove(as_json: bool, guest: str | None, port: int | str) -> None:
    """Remove a port, and end its chardev.

    What the guest has written is delivered first, as long as the far side takes any of it (see
    --drain of `vconfs host`); the rest is dropped, and the host logs how much.

    \b
    Example:
      vconfs ctl /run/vcon.ctl remove org.example.chat
    """
    _carry_out(Remove(port, guest=guest), as_json)


@command.command("rename")
@_as_json
@_guest
@_port
@click.argument("name")
def rename(as_json: bool, guest: str | None, port: int | str, name: str) -> None:
    """Change the name of a port; '' removes its name.

    \b
    Example:
      vconfs ctl /run/vcon.ctl rename 1 org.example.log
    """
    _carry_out(Rename(port, name, guest=guest), as_json)


@command.command("throttle", short_help="Take no more data from the guest, or take it again.")
@_as_json
@_guest
@_port
@_switch
def throttle(as_json: bool, guest: str | None, port: int | str, switch: str) -> None:
    """Take no more data from the guest on a port, or take it again.

    `on` stays in force until `off`. A port is also throttled automatically while the far side does
    not read what the guest sends: `off` does not change that.

    \b
    Example:
      vconfs ctl /run/vcon.ctl throttle org.example.chat on
    """
    _carry_out(Throttle(port, switch == "on", guest=guest), as_json)


def _mebibytes(size: str) -> int:
    return parse_mebibytes("limit", size, LIMIT_MAX)


@command.command("limit", short_help="Set how much unread data the guest may keep.")
@_as_json
@_guest
@_port
@click.argument("mib", callback=parsed_by(_mebibytes), metavar="SIZE")
def limit(as_json: bool, guest: str | None, port: int | str, mib: int) -> None:
    """Set how much unread data the guest may keep for a port (dialect v8), like 4M.

    SIZE is a whole number of MiB.

    \b
    Example:
      vconfs ctl /run/vcon.ctl limit org.example.chat 4M
    """
    _carry_out(Limit(port, mib, guest=guest), as_json)


@command.command("cache", short_help="Keep or drop unread data when a port is closed.")
@_as_json
@_guest
@_port
@_switch
def cache(as_json: bool, guest: str | None, port: int | str, switch: str) -> None:
    """Keep unread data when a port is closed, at either end, or drop it.

    \b
    Example:
      vconfs ctl /run/vcon.ctl cache org.example.chat on
    """
    _carry_out(Cache(port, switch == "on", guest=guest), as_json)


_characters = click.IntRange(0, 65535)


@command.command("resize", short_help="Tell the guest the size of a console.")
@_as_json
@_guest
@_port
@click.argument("cols", type=_characters, metavar="COLS")
@click.argument("rows", type=_characters, metavar="ROWS")
def resize(as_json: bool, guest: str | None, port: int | str, cols: int, rows: int) -> None:
    """Tell the guest the size of the console on a port, in characters.

    \b
    Example:
      vconfs ctl /run/vcon.ctl resize 0 132 43
    """
    _carry_out(Resize(port, cols, rows, guest=guest), as_json)


@command.command("disconnect", short_help="Hang up the client at the far side of a port.")
@_as_json
@_guest
@_port
def disconnect(as_json: bool, guest: str | None, port: int | str) -> None:
    """Hang up the client at the far side of a port, so that the next one can connect.

    The file of a `file:` port is opened again. If the far side has failed and waits to be tried
    again, it is tried at once.

    \b
    Examples:
      vconfs ctl /run/vcon.ctl disconnect org.example.chat
      vconfs ctl /run/vcon.ctl disconnect org.example.log
    """
    _carry_out(Disconnect(port, guest=guest), as_json)


# --- guests -------------------------------------------------------------------------------

_guest_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one line of JSON per guest."
)


@command.group("guest", short_help="List, add and remove guests.")
def guests() -> None:
    """List the guests of a host end that can have several, add one, or remove one.

    \b
    Examples:
      vconfs ctl /run/vcon.ctl guest list
      vconfs ctl /run/vcon.ctl guest add web1
    """


@guests.command("list")
@_guest_json
def list_guests(as_json: bool) -> None:
    """List the guests, connected or not.

    \b
    Example:
      vconfs ctl /run/vcon.ctl guest list --json | jq -r 'select(.connected) | .name'
    """
    from vconfs.cli._tables import Column, Table, print_table

    them = _carry_out(GuestList(), as_json)
    if as_json:
        return
    numbers = {"PORTS": "ports", "QUEUED": "queued", "IN": "bytes_in", "OUT": "bytes_out"}
    if any(guest["dropped"] for guest in them):
        numbers["DROPPED"] = "dropped"
    columns = [Column("GUEST", 0), Column("STATE", 1)]
    table = Table([*columns, *(Column(it, rank=2, is_number=True) for it in numbers)])
    for guest in them:
        state = "connected" if guest["connected"] else "-"
        table.add_row((guest["name"] or "-", state, *(guest[key] for key in numbers.values())))
    print_table(table)


@guests.command("add")
@_guest_json
@click.argument("name")
def add_guest(as_json: bool, name: str) -> None:
    """Add a guest with the ports, and the listeners, of the [template] of the host end.

    \b
    Example:
      vconfs ctl /run/vcon.ctl guest add web1
    """
    _carry_out(GuestAdd(name), as_json)


@guests.command("remove")
@_guest_json
@click.argument("name", shell_complete=_propose_guests)
def remove_guest(as_json: bool, name: str) -> None:
    """Remove a guest and its ports, and hang it up.

    What it has written is delivered first, as in `remove`. If the host end has a template, a guest
    that comes again by its name is a new one.

    \b
    Example:
      vconfs ctl /run/vcon.ctl guest remove web1
    """
    _carry_out(GuestRemove(name), as_json)


@command.command("tap", short_help="Show what passes through ports.")
@style_options
@_guest
@click.argument("ports", nargs=-1, type=_address, metavar="[PORT]…", shell_complete=_propose_ports)
def tap(guest: str | None, ports: tuple[int | str, ...], **style: Any) -> None:
    """Show what passes through ports from now on, while others use them; without PORT, all ports.

    `in` came from the guest, `out` was sent to it. The guest opens and closes a port, the far side
    connects and disconnects. For the rest, see `vconfs tap`, which does the same at the guest end.
    If there are several guests, --guest says which one to tap. The command ends when that guest is
    removed, or the host end has ended.

    \b
    Examples:
      vconfs ctl /run/vcon.ctl tap org.example.chat
      vconfs ctl /run/vcon.ctl tap --guest web1 --filter in,out
      vconfs ctl /run/vcon.ctl tap --write - | wireshark -k -i -
    """
    path, chosen = click.get_current_context().obj, Style(**style)
    show(read_records(ask_to_tap(path, Tap(ports, guest=guest)), str(path)), chosen)


def _print_table(ports: list[dict[str, Any]]) -> None:
    from vconfs.cli._tables import Column, Table, print_table

    keys = ["queued", "bytes_in", "bytes_out"]
    numbers = ["QUEUED", "IN", "OUT"]
    if any(port["dropped"] for port in ports):
        keys.append("dropped")
        numbers.append("DROPPED")
    of_guest = len({port.get("guest_name") for port in ports}) > 1
    texts = {
        **({"OF GUEST": 0} if of_guest else {}),
        "ID": 0,
        "NAME": 0,
        "CHARDEV": 1,
        "HOST": 4,
        "GUEST": 3,
        "STATE": 2,
    }
    table = Table(
        [
            *(Column(heading, rank) for heading, rank in texts.items()),
            *(Column(heading, rank=5, is_number=True) for heading in numbers),
        ]
    )
    for port in ports:
        cells = (
            *([port["guest_name"]] if of_guest else []),
            port["id"],
            port["name"] or "-",
            port["chardev"] or "-",
            "connected" if port["host"] else "-",
            "-" if port["guest"] == "absent" else port["guest"],
            _state(port),
            *(port[key] for key in keys),
        )
        table.add_row(cells)
    print_table(table)


def _state(port: dict[str, Any]) -> str:
    by_hand, by_host, by_guest = (
        port[key] for key in ("throttled_by_hand", "throttled", "guest_throttled")
    )
    throttled = "throttled by hand" if by_hand else "throttled" if by_host else ""
    words = (port["console"] and "console", throttled, by_guest and "guest-throttled")
    return ", ".join(filter(None, words)) or "-"
