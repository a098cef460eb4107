"""vconfs ls: a table of the ports of mounts."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from vconfs.cli._arguments import Mount
from vconfs.cli._mount_table import (
    MountState,
    all_mounts,
    in_time,
    is_guest_folder,
    port_folders,
    states,
    why,
)
from vconfs.errors import VconfsError
from vconfs.files.names import id_of_file
from vconfs.files.status import WHOLE_STATUS

log: Final = logging.getLogger(__name__)

#: Attributes that are true or false, and those that are numbers.
_FLAGS = {"console", "host", "guest", "throttled", "guest_throttled", "host_throttled", "cache"}
_NUMBERS = {
    *("id", "queued", "limit", "bytes_in", "bytes_out"),
    *("dropped", "host_dropped", "ignored", "resets"),
}

#: How many ports are read in the time that a mount has to answer.
_AT_ONCE = 256


def read_ports(mountpoint: Path) -> list[dict[str, object]]:
    """Read the status of every port in a mount; raise VconfsError if it is not a mount.

    A port that we may not read has only "port", the name of its file. The host's side of a port has
    "guest_name", too.
    """
    return [port for _, ports in read_folders(mountpoint) for port in ports]


def read_folders(mountpoint: Path) -> list[tuple[Path, list[dict[str, object]]]]:
    """Read the status of the ports in each folder of a mount: its root, or those of guests."""
    try:
        folders = in_time(mountpoint, lambda: port_folders(mountpoint))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            raise VconfsError(f"{mountpoint} is not a vconfs mount") from None
        raise why(mountpoint, error) from None
    return [(folder, _read_folder(folder)) for folder in folders]


def _read_folder(folder: Path) -> list[dict[str, object]]:
    try:
        files, is_guest = in_time(folder, lambda: (os.listdir(folder), is_guest_folder(folder)))
    except FileNotFoundError:
        return []  # the guest has gone
    except OSError as error:
        raise why(folder, error) from None
    ids = sorted(
        port_id for name in files if (port_id := id_of_file(os.fsencode(name))) is not None
    )
    paths = [folder / f"vcon{port_id}" for port_id in ids]
    ports: list[dict[str, object]] = []
    for begin in range(0, len(paths), _AT_ONCE):
        some = paths[begin : begin + _AT_ONCE]
        ports += in_time(folder, partial(_read_some, some))
    name = {"guest_name": folder.resolve().name} if is_guest else {}
    return [{**name, **port} for port in ports if port]


def _read_some(paths: list[Path]) -> list[dict[str, object]]:
    return [_read_port(path) for path in paths]


def _read_port(path: Path) -> dict[str, object]:
    try:
        texts = dict(json.loads(os.getxattr(path, WHOLE_STATUS)))
        return {"port": path.name, **{key: _value(key, text) for key, text in texts.items()}}
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, ValueError):
        return {"port": path.name}


def _value(key: str, text: str) -> object:
    return text == "1" if key in _FLAGS else int(text) if key in _NUMBERS else text


@click.command("ls", short_help="List the ports of mounts and what they are doing.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per port.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of each port.")
@click.argument("mountpoints", type=Mount(), nargs=-1)
def command(as_json: bool, quiet: bool, mountpoints: tuple[Path, ...]) -> None:
    """List the ports of the mount at each MOUNTPOINT, or of all mounts, and what they are doing.

    DROPPED, the bytes that were lost by rule, is shown only if there are any. Of a mount with
    guests, MOUNTPOINT can also be the folder of one guest; PEER is then the guest. On a terminal,
    names that are too long for it are cut; through a pipe, each port is one whole line.

    \b
    Examples:
      vconfs ls
      vconfs ls /mnt/vcon
      vconfs ls --json /mnt/vcon | jq -r 'select(.host) | .name'
      for port in $(vconfs ls -q /mnt/vcon); do getfattr --only-values -n name $port; done
    """
    found = [(mount, read_folders(mount)) for mount in mountpoints] or list(_read_all_mounts())
    ports = [
        (mount, port) for mount, folders in found for _, its_ports in folders for port in its_ports
    ]
    if quiet:
        for _, folders in found:
            for folder, its_ports in folders:
                for port in its_ports:
                    click.echo(os.fsencode(folder / str(port["port"])))
    elif as_json:
        for mount, port in ports:
            click.echo(json.dumps(port if len(mountpoints) == 1 else {"mount": str(mount), **port}))
    else:
        _print_table(ports, shows_mount=len(found) > 1)


def _read_all_mounts() -> Iterator[tuple[Path, list[tuple[Path, list[dict[str, object]]]]]]:
    """Yield each mountpoint with its folders of ports; log the mounts that do not answer."""
    for mount, state in states(all_mounts()).items():
        try:
            if state is not MountState.ALIVE:
                raise VconfsError(f"{mount}: {state.value}")
            yield mount, read_folders(mount)
        except VconfsError as error:
            log.warning("%s", error)


def _print_table(ports: list[tuple[Path, dict[str, object]]], *, shows_mount: bool) -> None:
    from vconfs.cli._tables import Column, Table, print_table

    shows_dropped = any(dropped(port) for _, port in ports)
    shows_guest = any(map(of_guest, (port for _, port in ports)))
    table = Table(
        [
            *[Column("MOUNT", rank=1)] * shows_mount,
            *[Column("GUEST")] * shows_guest,
            Column("PORT"),
            Column("NAME"),
            Column("PEER" if shows_guest else "HOST", rank=3),
            Column("STATE", rank=2),
            Column("OPEN BY", rank=4),
            Column("QUEUED", rank=5, is_number=True),
            Column("IN", rank=6, is_number=True),
            Column("OUT", rank=6, is_number=True),
            *[Column("DROPPED", is_number=True)] * shows_dropped,
        ]
    )
    for mount, port in ports:
        guest = [of_guest(port) or "-"] * shows_guest
        table.add_row([*[mount] * shows_mount, *guest, *_cells(port, shows_dropped)])
    print_table(table)


def _cells(port: dict[str, object], shows_dropped: bool) -> list[object]:
    if "id" not in port:
        return [port["port"], "-", "-", "no permission", *[""] * (4 + shows_dropped)]
    return [
        port["port"],
        port.get("name", "-"),
        "connected" if has_peer(port) else "-",
        state(port),
        port.get("openers") or "-",
        *(port[key] for key in ("queued", "bytes_in", "bytes_out")),
        *[dropped(port)] * shows_dropped,
    ]


def of_guest(port: Mapping[str, Any]) -> str:
    """Return the name of the guest, if this is the host's side of its port; else nothing."""
    return str(port.get("guest_name", ""))


def has_peer(port: Mapping[str, Any]) -> bool:
    """True if the other end has its side of a port open."""
    return bool(port["guest"] if of_guest(port) else port["host"])


def dropped(port: Mapping[str, Any]) -> int:
    """Return how many bytes of a port were lost by rule, at both ends as far as is known."""
    return int(port.get("dropped", 0)) + int(port.get("host_dropped", 0))


def state(port: Mapping[str, Any]) -> str:
    """Return the words for what a port is and which end throttles the other."""
    flags = ("console", "throttled", "guest_throttled", "host_throttled")
    return ", ".join(flag.replace("_", "-") for flag in flags if port.get(flag)) or "-"
