"""Work through orders of cells, each as early as its rank, its stage before and its stage behind allow."""

from __future__ import annotations

from collections.abc import Sequence

from passes.scheduling.steps.cells import Cell, Line, Orders, Run, Stuck


def run(line: Line, orders: Orders) -> Run:
    """What orders take when every cell begins as soon as it can.

    Raises :class:`Stuck` when a cell waits for one that never comes, or when a cell is on a rank other than its
    stage's.
    """
    starts: dict[Cell, int] = {}
    ends: dict[Cell, int] = {}
    whole = {(cell.stage, cell.microbatch) for cells in orders for cell in cells if cell.kind == "B"}
    at, free = [0] * len(orders), [0] * len(orders)
    moved = True
    while moved:
        moved = False
        for rank, cells in enumerate(orders):
            while at[rank] < len(cells):
                cell = cells[at[rank]]
                ready = _ready(line, rank, cell, ends, whole)
                if ready is None:
                    break
                starts[cell] = max(ready, free[rank])
                ends[cell] = free[rank] = starts[cell] + line.stages[cell.stage].time(cell.kind)
                at[rank] += 1
                moved = True
    stuck = [str(cells[at[rank]]) for rank, cells in enumerate(orders) if at[rank] < len(cells)]
    if stuck:
        raise Stuck(f"{', '.join(stuck)} wait for ever")
    return Run(
        tuple(starts[cells[0]] if cells else 0 for cells in orders),
        tuple(ends[cells[-1]] if cells else 0 for cells in orders),
        starts,
        ends,
        tuple(sum(ends[c] - starts[c] for c in cells) for cells in orders),
        tuple(peak(line, cells) for cells in orders),
    )


def _ready(line: Line, rank: int, cell: Cell, ends: dict[Cell, int], whole: set[tuple[int, int]]) -> int | None:
    """When what a cell reads has arrived; None while that is not known."""
    if line.stages[cell.stage].rank != rank:
        raise Stuck(f"{cell} is on rank {rank}, and its stage on rank {line.stages[cell.stage].rank}")
    ready = 0
    for need in line.needs(cell, (cell.stage + 1, cell.microbatch) in whole):
        if need not in ends:
            return None
        ready = max(ready, ends[need] + line.lag(need.stage, cell.stage))
    return ready


def peak(line: Line, cells: Sequence[Cell]) -> int:
    """The most bytes that a rank holds: it does one thing after the other, so the order alone decides."""
    held = peak = 0
    for cell in cells:
        change = line.stages[cell.stage].change(cell.kind)
        peak = max(peak, held + max(0, change))
        held += change
    return peak
