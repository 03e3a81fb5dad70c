"""Tables of figures: shown on a terminal, or as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

Cell = str | int | float | bool | None


@dataclass
class Table:
    """Rows of figures under named columns. ``notes`` say what the figures mean and sum them up."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list[tuple[Cell, ...]])
    notes: list[str] = field(default_factory=list[str])

    def add(self, *cells: Cell) -> None:
        """Append a row; it has as many cells as there are columns."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns of '{self.title}'")
        self.rows.append(cells)

    def as_data(self) -> dict[str, Any]:
        """For ``--json``."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "notes": self.notes}

    def show(self, console: Console) -> None:
        """Print it."""
        shown = RichTable(title=self.title, title_justify="left", header_style="bold")
        for index, column in enumerate(self.columns):
            numeric = all(not isinstance(row[index], str) for row in self.rows)
            shown.add_column(column, justify="right" if numeric else "left")
        for row in self.rows:
            shown.add_row(*(text(cell) for cell in row))
        console.print(shown)
        for note in self.notes:
            console.print(note, markup=False, highlight=False)
        console.print()


def text(cell: Cell) -> str:
    """A cell as a person reads it: an absent figure is a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.4f}" if abs(cell) < 10 else f"{cell:,.3f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


@dataclass(frozen=True)
class Options:
    """What every section is given: seconds for a solver, and whether to measure only a sample."""

    quick: bool
    seconds: float
    seed: int
    plot: str | None = None


Section = Callable[[Options], list[Table]]


def skipped(title: str, reason: str) -> Table:
    """An empty table that says why it is empty."""
    return Table(title, ("skipped",), [(reason,)])
