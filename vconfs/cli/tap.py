"""vconfs tap: show what passes through ports, both ways, while others use them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from attrs import frozen
from click.shell_completion import CompletionItem

from vconfs.cli._arguments import PortName, proposals
from vconfs.cli._find_port import find_port, mounts
from vconfs.cli._following import opened_file, read_chunks
from vconfs.cli._mount_table import in_time
from vconfs.cli._tapping import Style, read_records, show, style_options
from vconfs.errors import VconfsError
from vconfs.files.names import GUESTS_ATTRIBUTE, PID_ATTRIBUTE, TAP_FILE
from vconfs.protocol.tap import Record, encode_selection


class _PortOrMount(PortName):
    """A port, or a mountpoint, which stands for all its ports."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Propose ports, and mounts."""
        found = proposals(map(str, mounts()), incomplete) if incomplete else []
        return found + super().shell_complete(ctx, param, incomplete)


@frozen
class _Selection:
    """The ports of one mount to tap: those with these ids, or all."""

    mountpoint: Path
    ids: frozenset[int] | None


@click.command("tap", short_help="Show what passes through ports, while others use them.")
@style_options
@click.argument("ports", nargs=-1, required=True, type=_PortOrMount(), metavar="PORT…")
def command(ports: tuple[str, ...], **style: Any) -> None:
    """Show what passes through the PORTs from now on, both ways, while other programs use them.

    PORT is a file, MOUNTPOINT/NAME, or the name of a port in any mount; a MOUNTPOINT stands for
    all its ports, also those that are added later. Only root and the user who runs the mount may
    tap it. The command ends when the mount is unmounted. Of a mount with guests, MOUNTPOINT
    is the folder of one guest, and host and guest are swapped in what follows.

    \b
    The events are:
      in  out              data came from the host, or was sent to it
      open  close          a program opened the port, or closed it
      connect  disconnect  the host opened its side, or hung up
      present              the port is there when the tap begins
      add  remove          the port was added or removed
      lost                 this command was too slow, and missed some of these

    With --filter, only these events are shown, or only data in which the regular expression is
    found; it can be used several times. `present` and `lost` do not count for --limit. With
    --write, each port is an interface of the file, data has its direction in the packet's flags,
    and the other events are packets without data that have a comment.

    \b
    Examples:
      vconfs tap org.qemu.guest_agent.0
      vconfs tap --hex --filter in,out /mnt/vcon/vcon3
      vconfs tap --filter /error/ --limit 1 /mnt/vcon
      vconfs tap --json org.example.chat | jq -r 'select(.event == "in") | .data | @base64d'
      vconfs tap --write - /mnt/vcon | wireshark -k -i -
    """
    chosen = Style(**style)
    show(_records(_selected(ports)), chosen)


def _selected(arguments: Sequence[str]) -> _Selection:
    """Find the ports; raise VconfsError if one is not there, or they are in several mounts."""
    ids: set[int] = set()
    everything = False
    places: dict[Path, None] = {}
    for argument in arguments:
        if argument and _is_mount(Path(argument)):
            _check_one_guest(Path(argument))
            everything = True
            places[Path(os.path.realpath(argument))] = None
        else:
            file = find_port(argument)
            ids.add(int(os.getxattr(file, "user.id")))
            places[Path(os.path.realpath(file)).parent] = None
    if len(places) > 1:
        raise VconfsError(f"these ports are in {len(places)} mounts: tap one mount at a time")
    return _Selection(next(iter(places)), None if everything else frozenset(ids))


def _check_one_guest(mount: Path) -> None:
    """Raise VconfsError if this is a mount with a folder for each guest."""
    with suppress(OSError):
        in_time(mount, lambda: os.getxattr(mount, GUESTS_ATTRIBUTE))
        raise VconfsError(f"{mount} has a folder for each guest: tap the ports of one guest")


def _is_mount(path: Path) -> bool:
    with suppress(OSError):
        in_time(path, lambda: os.getxattr(path, PID_ATTRIBUTE))
        return True
    return False


def _records(selection: _Selection) -> Iterator[Record]:
    """Yield the records of the ports, until the mount is unmounted."""
    mountpoint, ids = selection.mountpoint, selection.ids
    try:
        flags = in_time(mountpoint, lambda: os.statvfs(mountpoint).f_flag)
        chooses = ids is not None and not flags & os.ST_RDONLY
        with opened_file(mountpoint, TAP_FILE, os.O_RDWR if chooses else os.O_RDONLY) as file:
            if ids is not None and chooses:
                os.write(file, encode_selection(sorted(ids)))
            for record in read_records(read_chunks(file), str(mountpoint)):
                if ids is None or record.id is None or record.id in ids:
                    yield record
    except PermissionError:
        raise VconfsError(
            f"{mountpoint}: only root and the user who runs the mount may tap its ports"
        ) from None
