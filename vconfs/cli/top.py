"""vconfs top: what the ports of a mount are doing, live."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import click
from rich.live import Live
from rich.table import Table

from vconfs.cli._arguments import Mount
from vconfs.cli._tables import add_row, make_table, print_table
from vconfs.cli.ls import dropped, read_ports, state


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

    On a terminal the table is updated in place, until Ctrl-C; elsewhere each table is printed.
    DROPPED, the bytes that were lost by rule, is shown only if there are any.

    \b
    Examples:
      vconfs top /mnt/vcon
      vconfs top --count 2 --interval 10 /mnt/vcon >>ports.log
    """
    tables = _tables(mountpoint, interval, looks)
    if os.isatty(1):
        with Live(next(tables), screen=looks is None, auto_refresh=False) as live:
            for table in tables:
                live.update(table, refresh=True)
    else:
        for table in tables:
            print_table(table)


def _tables(mountpoint: Path, interval: float, looks: int | None) -> Iterator[Table]:
    """Yield one table per interval; the first comes at once, and has no rates yet."""
    before: dict[object, dict[str, Any]] = {}
    then = time.monotonic()
    for look in count(1):
        ports: list[dict[str, Any]] = [port for port in read_ports(mountpoint) if "id" in port]
        now = time.monotonic()
        yield _table(ports, before, now - then)
        if look == looks:
            return
        before, then = {port["id"]: port for port in ports}, now
        time.sleep(interval)


def _table(
    ports: list[dict[str, Any]], before: dict[object, dict[str, Any]], seconds: float
) -> Table:
    shows_dropped = any(map(dropped, ports))
    numbers = ("IN/S", "OUT/S", "QUEUED", "FILL", *["DROPPED"] * shows_dropped)
    table = make_table(("PORT", "NAME", "HOST"), numbers, ("STATE",))
    for port in ports:
        old = before.get(port["id"])
        cells = (
            port["port"],
            port.get("name", "-"),
            "connected" if port["host"] else "-",
            *(_rate(port, old, key, seconds) for key in ("bytes_in", "bytes_out")),
            readable_size(port["queued"]),
            f"{100 * port['queued'] // port['limit']}%",
            *[readable_size(dropped(port))] * shows_dropped,
            state(port),
        )
        add_row(table, cells)
    return table


def _rate(port: dict[str, Any], old: dict[str, Any] | None, key: str, seconds: float) -> str:
    if old is None or not seconds:
        return "-"
    return readable_size(max(0, port[key] - old[key]) / seconds)


def readable_size(size: float) -> str:
    """Return a number of bytes with at most four digits: 999, 1.5K, 20M."""
    for unit in ("", "K", "M", "G"):
        if size < 1000:
            return f"{size:.1f}{unit}" if unit and size < 10 else f"{size:.0f}{unit}"
        size /= 1024
    return f"{size:.0f}T"
