"""A page with the tables and plots of a file of results: `python -m benchmarks.report FILE FOLDER`.

It writes FOLDER/benchmarks.md and, for each benchmark, FOLDER/benchmarks/NAME.svg. The plots need
matplotlib: `pip install -e ".[bench]"`.
"""

from __future__ import annotations

import importlib
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks._results import Results, read
from benchmarks._tables import Table

_COLUMNS: Final = 4
#: With more than this between the least and the most, an axis is logarithmic.
_DECADE: Final = 10
_INTRODUCTION: Final = """\
# Benchmarks

What vconfs costs, and how that grows with its work, beside others that do something like it. All
figures are medians of repetitions in turns, but for those of memory, which are measured once. A
figure of one machine says little about another: the quotients of two peers, in the last columns,
say more.

These are the results of one run, on {date}, on this machine:
{machine}.
`make bench` makes such a run, and `make bench-report` writes this page from its results.
`make bench NAME=costs` measures only one part.

The peers are *embedded*, a mount with both ends in one process; *vhost-user* and *stream*, a mount
and a `vconfs host` (see [Two ends](howto/two-ends.md)); a device of the C library of FUSE, which
discards what is written; and socat.
"""


def page(results: Results) -> str:
    """Return the page."""
    parts = [_INTRODUCTION.format(date=results.date, machine=results.machine)]
    for name, tables in results.tables.items():
        parts.append(f"## {name.capitalize()}\n\n{_description(name)}\n")
        parts.append(f"![The tables of this part, as plots](benchmarks/{name}.svg)\n")
        parts += map(_section, tables)
    return "\n".join(parts)


def _description(name: str) -> str:
    about = importlib.import_module(f"benchmarks.{name}").__doc__
    assert about is not None
    return about.strip()


def _section(table: Table) -> str:
    heads, *rows = table.rows()
    lines = [heads, ["--:"] * len(heads), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"**{table.title}, {table.unit}**\n\n{text}\n"


def colours(results: Results) -> dict[str, str]:
    """Return the colour of each peer in all plots, by its name in matplotlib."""
    tables = [table for tables in results.tables.values() for table in tables]
    peers = dict.fromkeys(peer for table in tables for peer in table.peers)
    return {peer: f"C{number}" for number, peer in enumerate(peers)}


def plot(tables: Sequence[Table], colour: Mapping[str, str], file: Path) -> None:
    """Draw one plot for each table, all in one picture."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    # Text stays text, and the same results make the same file.
    rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "vconfs", "font.size": 9})
    columns = min(_COLUMNS, len(tables))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * lines), layout="constrained")
    for axes, table in zip(
        figure.subplots(lines, columns, squeeze=False).flat, tables, strict=False
    ):
        _draw(axes, table, colour)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def _draw(axes: Any, table: Table, colour: Mapping[str, str]) -> None:
    figures = table.figures
    for peer in table.peers:
        works = [work for work, row in figures.items() if peer in row]
        values = [figures[work][peer] for work in works]
        axes.plot(works, values, marker="o", label=peer, color=colour[peer])
    axes.set_xscale("symlog" if 0 in figures else "log", base=2)
    values = [value for row in figures.values() for value in row.values()]
    if max(values) > _DECADE * min(values) > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(list(figures), [_short(work) for work in figures])
    axes.minorticks_off()
    axes.set_title(table.title, fontsize=9)
    axes.set_xlabel(table.work)
    axes.set_ylabel(table.unit)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _short(work: float) -> str:
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if work >= size and work % size == 0:
            return f"{work / size:.0f}{unit}"
    return f"{work:g}"


def write(results: Results, folder: Path) -> None:
    """Write the page and the plots."""
    for name, tables in results.tables.items():
        plot(tables, colours(results), folder / "benchmarks" / f"{name}.svg")
    (folder / "benchmarks.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    words = parser.parse_args()
    write(read(words.file), words.folder)
