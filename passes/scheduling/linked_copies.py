"""Contiguous stages with copies where values take time to move: a transfer costs each of ``r`` copies an ``r``-th.

What enters and leaves a stage goes to one copy and the next micro-batch to the next, so a stage of ``r`` copies may
run, receive and send for ``r·T`` together (``linked_costs.py``). The least number of accelerators for the first ``j``
segments goes from position to position, with all widths and numbers of copies at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.budget import Budget
from passes.scheduling.linked_costs import NEVER, StageCosts

Positions = NDArray[Any]

STEP = 5e-9
"""Work for each stage and shape that a trial period looks at."""

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""What an accelerator counts beside a copy, in the search for few copies."""


class CopiedPiece(NamedTuple):
    """Segments ``begin..end`` in ``copies`` copies at the width of this number; a run with its transfers takes time."""

    begin: int
    end: int
    number: int
    copies: int
    time: int


class CopiedLine:
    """An order with the costs of its stages, and the numbers of copies that they may have."""

    def __init__(self, costs: StageCosts, shapes: Sequence[tuple[int, int]], budget: Budget):
        self.costs, self.n, self.accelerators = costs, costs.n, costs.profile.accelerators
        self.numbers: Positions = np.array([number for number, _ in shapes])
        self.copies: Positions = np.array([r for _, r in shapes], dtype=np.int64)
        self.wide: Positions = self.copies * np.array(costs.widths)[self.numbers]
        self.sizes = [level.size for level in costs.network.levels[:-1]]
        levels = len(self.sizes) + 1
        self.tables: Positions = np.full((len(costs.widths), levels, levels, self.n, self.n), NEVER, dtype=np.int64)
        for number in range(len(costs.widths)):
            for entry in range(levels):
                for leave in range(levels):
                    table = costs.table(number, entry, leave)
                    self.tables[number, entry, leave, :, : table.shape[1]] = table[:-1]
        self.budget = budget

    def _borders(self, first: Positions, last: Positions) -> Positions:
        """Level that joins accelerators; what lies outside of the platform is next to the edge."""
        first, last = np.maximum(first, 0), np.minimum(last, self.accelerators - 1)
        found = np.zeros(len(first), dtype=np.int64)
        for size in self.sizes:
            found += first // size != last // size
        return found

    def _stages(self, begin: int, q: int, shapes: Positions) -> Any:
        """``[shape, t]``: what a run of the stage ``[begin, begin + 1 + t)`` takes behind ``q`` accelerators."""
        start = np.full(len(shapes), q)
        end = start + self.wide[shapes]
        entry, leave = self._borders(start - 1, end - 1), self._borders(start, end)
        return self.tables[self.numbers[shapes], entry, leave, begin, : self.n - begin]

    def _solve(self, period: int, weight: float) -> list[CopiedPiece] | None:
        """Stages of at most ``period`` of least cost: copies plus ``weight`` for each accelerator, or those alone."""
        prices = self.wide + 0.0 if weight < 0 else self.copies + weight * self.wide
        cost: Positions = np.full(self.n + 1, np.inf)
        need, before, chosen = (np.zeros(self.n + 1, dtype=np.int64) for _ in range(3))
        cost[0] = 0
        for begin in range(self.n):
            if cost[begin] == np.inf:
                continue
            q = int(need[begin])
            possible = np.flatnonzero(q + self.wide <= self.accelerators)
            allowed = self._stages(begin, q, possible) <= (self.copies[possible] * period)[:, None]
            self.budget.spend(STEP * allowed.size)
            if not allowed.size:
                continue
            found: Positions = np.where(allowed, prices[possible, None], np.inf)
            shape: Positions = found.argmin(axis=0)
            total: Positions = cost[begin] + found[shape, np.arange(self.n - begin)]
            better: Positions = np.flatnonzero(total < cost[begin + 1 :])
            ends = begin + 1 + better
            shape = possible[shape[better]]
            cost[ends], need[ends], before[ends], chosen[ends] = total[better], q + self.wide[shape], begin, shape
        if cost[self.n] == np.inf:
            return None
        pieces: list[CopiedPiece] = []
        end = self.n
        while end:
            begin, shape_of = int(before[end]), int(chosen[end])
            time = int(self._stages(begin, int(need[begin]), np.array([shape_of]))[0, end - begin - 1])
            pieces.append(CopiedPiece(begin, end, int(self.numbers[shape_of]), int(self.copies[shape_of]), time))
            end = begin
        return pieces[::-1]

    def cover(self, period: int) -> list[CopiedPiece] | None:
        """Stages of at most ``period`` on the fewest accelerators, or None when there are none."""
        return self._solve(period, -1.0)

    def few(self, period: int, found: list[CopiedPiece]) -> list[CopiedPiece]:
        """Stages of at most ``period`` with few copies; ``found`` when no others have fewer."""
        for weight in WEIGHTS:
            trial = self._solve(period, weight)
            if trial is not None and sum(p.copies for p in trial) < sum(p.copies for p in found):
                found = trial
        return found

    def shortest(self, low: int, high: int, tolerance: float) -> list[CopiedPiece] | None:
        """The stages of least period from ``low`` to ``high``; within ``tolerance`` of it few copies.

        None where their period is no more than ``tolerance`` below ``high``.
        """
        if self.cover(int(high / (1 + tolerance)) - 1) is None:
            return None
        found = self.cover(high)
        if found is None:
            return None
        high = longest(found)
        while low < high and not self.budget.spent():
            middle = (low + high) // 2
            trial = self.cover(middle)
            if trial is None:
                low = middle + 1
            else:
                found, high = trial, longest(trial)
        return found if self.budget.spent() else self.few(int(high * (1 + tolerance)), found)


def longest(pieces: Sequence[CopiedPiece]) -> int:
    """The least period of these stages."""
    return max(1, *(-(-p.time // p.copies) for p in pieces), 1)
