"""Orders as lists of numbers, worked through fast: what a search that tries thousands of orders asks for."""

from __future__ import annotations

from collections.abc import Sequence

from passes.scheduling.steps.bounds import Objective
from passes.scheduling.steps.cells import Cell, Kind, Line, Orders

KINDS: tuple[Kind, ...] = ("F", "I", "W")

Numbers = list[list[int]]
"""The cells of every rank as numbers, in order."""


class Numbered:
    """``F``, ``I`` and ``W`` of all stages and micro-batches by number."""

    def __init__(self, line: Line, microbatches: int, objective: Objective):
        self.line, self.microbatches, self.objective = line, microbatches, objective
        self.cells = [Cell(kind, s, i) for s in range(len(line.stages)) for kind in KINDS for i in range(microbatches)]
        stages = line.stages
        self.times = [stages[c.stage].time(c.kind) for c in self.cells]
        self.changes = [stages[c.stage].change(c.kind) for c in self.cells]
        self.needs, self.lags = [-1] * len(self.cells), [0] * len(self.cells)
        for number, cell in enumerate(self.cells):
            for need in line.needs(cell, whole=False):
                self.needs[number] = self.number(need)
                self.lags[number] = line.lag(need.stage, cell.stage)

    def number(self, cell: Cell) -> int:
        return (cell.stage * 3 + KINDS.index(cell.kind)) * self.microbatches + cell.microbatch

    def numbers(self, orders: Orders) -> Numbers:
        """Orders without ``B`` as numbers."""
        return [[self.number(cell) for cell in cells] for cells in orders]

    def orders(self, numbers: Numbers) -> tuple[tuple[Cell, ...], ...]:
        return tuple(tuple(self.cells[n] for n in cells) for cells in numbers)

    def ends(self, numbers: Numbers) -> list[int] | None:
        """When each cell ends if it begins as soon as it can; None: ranks wait for each other in a circle."""
        needs, lags, times = self.needs, self.lags, self.times
        ends = [-1] * len(needs)
        waiters: dict[int, int] = {}
        at, free = [0] * len(numbers), [0] * len(numbers)
        ready = list(range(len(numbers)))
        left = sum(map(len, numbers))
        while ready:
            rank = ready.pop()
            cells, position, now = numbers[rank], at[rank], free[rank]
            begun = position
            while position < len(cells):
                cell = cells[position]
                need = needs[cell]
                if need >= 0:
                    arrival = ends[need]
                    if arrival < 0:
                        waiters[need] = rank
                        break
                    arrival += lags[cell]
                    if arrival > now:
                        now = arrival
                now += times[cell]
                ends[cell] = now
                position += 1
                if waiters and cell in waiters:
                    ready.append(waiters.pop(cell))
            at[rank], free[rank] = position, now
            left -= position - begun
        return None if left else ends

    def costs(self, numbers: Numbers, ends: Sequence[int]) -> list[int]:
        """What the objective counts of each rank: the time of its end, or of its span."""
        costs: list[int] = []
        for cells in numbers:
            begun = ends[cells[0]] - self.times[cells[0]] if self.objective == "span" and cells else 0
            costs.append(ends[cells[-1]] - begun if cells else 0)
        return costs

    def fits(self, cells: Sequence[int], limit: int) -> bool:
        """Whether an order of a rank never holds more than ``limit`` bytes."""
        held, changes = 0, self.changes
        for cell in cells:
            held += changes[cell]
            if held > limit:
                return False
        return True
