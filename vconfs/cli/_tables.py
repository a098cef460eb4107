"""Tables on the terminal: of the ports of a mount, and of a host end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from vconfs.syntax.printable import printable


def make_table(texts: Sequence[str], numbers: Sequence[str], more: Sequence[str] = ()) -> Table:
    """Return an empty table with columns of texts, then of numbers, then of texts again."""
    table = Table(box=None, pad_edge=False)
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right")
    for heading in more:
        table.add_column(heading)
    return table


def add_row(table: Table, cells: Iterable[object]) -> None:
    """Add a row, with the text of its cells made printable."""
    table.add_row(*(printable(str(cell)) for cell in cells))


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; 120 columns wide if there is no terminal."""
    Console(width=None if os.isatty(1) else 120, markup=False).print(table)
