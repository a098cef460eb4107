"""Tables on the terminal: of the ports of a mount, and of a host end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import define, field, frozen
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from vconfs.cli._streams import as_shown, is_dumb
from vconfs.syntax.printable import printable

#: More columns than any row of a table has.
_WIDE: Final = 1 << 16
#: Characters of a text that are shown at least, where there is no room for all of it.
_TEXT_MIN: Final = 9
#: Spaces between two columns.
_GAP: Final = 2


@frozen
class Column:
    """A column of a table: of texts, which may be cut, or of numbers, which are shown whole.

    Where a terminal is too narrow, the columns with the highest rank are left out first; those of
    rank 0 always stay.
    """

    heading: str
    rank: int = 0
    is_number: bool = False


@frozen
class _Cell:
    """A text that is cut in its middle to fit, because names mostly differ at their ends."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the least width, and that of the whole text."""
        return Measurement(1, cell_len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield as much of the text as there is room for."""
        mark = "…" if as_shown("…", options.encoding) == "…" else "~"
        yield Text(cut(self.text, options.max_width, mark), no_wrap=True, overflow="crop")


def cut(text: str, width: int, mark: str = "…") -> str:
    """Return a text that takes `width` cells at most, with a mark for what is left out."""
    if cell_len(text) <= width:
        return text
    end = width // 2
    begin = max(0, width - end - cell_len(mark))
    return set_cell_size(text, begin) + mark + set_cell_size(text[::-1], end)[::-1]


@define
class Table:
    """A table that fits its columns into the width of the terminal."""

    columns: Sequence[Column]
    rows: list[list[str]] = field(factory=list)

    def add_row(self, cells: Iterable[object]) -> None:
        """Add a row, with the text of its cells made printable."""
        self.rows.append([printable(str(cell)) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table with the columns that fit into the width."""
        least = [self._least(index) for index in range(len(self.columns))]
        fitting = self._fitting(options.max_width, least)
        shown = RichTable(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
        for index in fitting:
            column = self.columns[index]
            shown.add_column(
                column.heading,
                justify="right" if column.is_number else "left",
                no_wrap=column.is_number,
                min_width=least[index],
            )
        for row in self.rows:
            shown.add_row(*(_Cell(as_shown(row[index], options.encoding)) for index in fitting))
        yield shown

    def _fitting(self, width: int, least: Sequence[int]) -> list[int]:
        """Return the indices of the columns that are shown, by the least width of each column."""
        left = list(range(len(self.columns)))
        while sum(least[index] + _GAP for index in left) - _GAP > width:
            last = max(left, key=lambda index: self.columns[index].rank)
            if not self.columns[last].rank:
                break
            left.remove(last)
        return left

    def _least(self, index: int) -> int:
        """Return the smallest useful width of a column."""
        column = self.columns[index]
        longest = max(cell_len(cell) for cell in (column.heading, *(it[index] for it in self.rows)))
        return longest if column.is_number else min(longest, _TEXT_MIN)


def print_table(table: Table) -> None:
    """Print a table. Cells that do not fit on a terminal are cut; elsewhere, all are whole."""
    open_console(None if os.isatty(1) else _WIDE).print(table)


def open_console(width: int | None = None) -> Console:
    """Return standard output as a console; without a width, it is as wide as the terminal."""
    if not is_dumb():
        return Console(width=width, markup=False, highlight=False)
    columns, height = shutil.get_terminal_size()  # rich assumes 80 columns
    return Console(
        width=width or columns, height=height, color_system=None, markup=False, highlight=False
    )
