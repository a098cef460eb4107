"""Tables of results: how the figures of some peers grow as their work grows."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from attrs import Factory, define, frozen


@frozen
class Ratio:
    """A peer, and the one that it is compared with."""

    ours: str
    other: str

    def __str__(self) -> str:
        return f"{self.ours} / {self.other}"


@define
class Table:
    """The results of one measurement."""

    title: str
    unit: str
    #: What the rows are: "ports", "bytes per write".
    work: str
    ratios: list[Ratio]
    #: The results by the amount of work and the peer.
    samples: dict[float, dict[str, list[float]]] = Factory(dict)

    def add(self, work: float, peer: str, value: float) -> None:
        """Add a result."""
        self.samples.setdefault(work, {}).setdefault(peer, []).append(value)

    @property
    def peers(self) -> list[str]:
        """The peers, in the order of their first results."""
        return list(dict.fromkeys(peer for row in self.samples.values() for peer in row))

    @property
    def figures(self) -> dict[float, dict[str, float]]:
        """The median of each peer, by the amount of work."""
        return {
            work: {peer: median(values) for peer, values in row.items()}
            for work, row in sorted(self.samples.items())
        }

    def rows(self) -> list[list[str]]:
        """Return the heads, and a row of cells for each amount of work."""
        rows = [[self.work, *self.peers, *map(str, self.ratios)]]
        for work, row in self.figures.items():
            cells = [written(row[peer]) if peer in row else "" for peer in self.peers]
            cells += [_quotient(row, ratio) for ratio in self.ratios]
            rows.append([written(work), *cells])
        return rows

    def show(self) -> None:
        """Print it."""
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(f"\n{self.title}, {self.unit}")
        for row in rows:
            print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))


def written(value: float) -> str:
    """Return a figure with three digits, or as a whole number if it has more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _quotient(row: dict[str, float], ratio: Ratio) -> str:
    if not {ratio.ours, ratio.other} <= set(row) or row[ratio.other] == 0:
        return ""
    return f"{row[ratio.ours] / row[ratio.other]:.2f}"


def to_json(table: Table) -> dict[str, Any]:
    """Return a table as JSON has it."""
    return {
        "title": table.title,
        "unit": table.unit,
        "work": table.work,
        "ratios": [[ratio.ours, ratio.other] for ratio in table.ratios],
        "results": [
            {"work": work, "peer": peer, "values": values}
            for work, row in table.samples.items()
            for peer, values in row.items()
        ],
    }


def from_json(kept: dict[str, Any]) -> Table:
    """Return the table of a file of results."""
    ratios = [Ratio(*names) for names in kept["ratios"]]
    table = Table(kept["title"], kept["unit"], kept["work"], ratios)
    for result in kept["results"]:
        for value in result["values"]:
            table.add(result["work"], result["peer"], value)
    return table


def shown(tables: Iterable[Table]) -> list[Table]:
    """Print tables, and return them."""
    kept = list(tables)
    for table in kept:
        table.show()
    return kept
