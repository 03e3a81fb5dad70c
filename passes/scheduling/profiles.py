"""What contiguous stages of one order take, for each width: prefix sums of times and of parameters."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.blocks import capacity
from passes.scheduling.elementary import usable
from passes.scheduling.filled import all_by_width
from passes.scheduling.problem import MemoryProblem, PeriodicProblem

Positions = NDArray[Any]


@dataclass(frozen=True)
class Stage:
    """Operations ``begin..end`` of the order on ``width`` accelerators, ``load`` ns a period."""

    begin: int
    end: int
    width: int
    load: int


def fastest(times: dict[int, int], width: int) -> int | None:
    """The allotment of at most ``width`` of least time; of equal ones the widest, so that values stay where they are.

    None when no allotment is that narrow.
    """
    return min((k for k in times if k <= width), key=lambda k: (times[k], -k), default=None)


def fastest_by_width(times: dict[int, int], widths: Sequence[int]) -> list[int | None]:
    """:func:`fastest` for each of the increasing ``widths``."""
    found: list[int | None] = []
    best: int | None = None
    allotments = sorted(times)
    position = 0
    for width in widths:
        while position < len(allotments) and allotments[position] <= width:
            k = allotments[position]
            if best is None or times[k] <= times[best]:
                best = k
            position += 1
        found.append(best)
    return found


ByWidth = Callable[[dict[int, int], Sequence[int]], list[int | None]]


class Choices:
    """Time and parameter bytes of each operation at its fastest allotment, for each of some ``widths``.

    With ``by_width`` at the allotment that this chooses instead, and where blocks are to be filled at the width itself;
    :attr:`allotments` has it for each identity of a table (the first of the operation's ``keys``) and width.
    """

    def __init__(self, problem: PeriodicProblem, widths: Sequence[int], by_width: ByWidth = fastest_by_width):
        memory = problem.memory if isinstance(problem, MemoryProblem) else 0
        self.accelerators, self.memory, self.widths = capacity(problem, widths), memory, tuple(widths)
        self.unusable = problem.accelerators - self.accelerators
        by_width = all_by_width if problem.filled else by_width
        self.groups = [item for item in problem.items if len(item) > 1]
        self.keys = [(0, 0, True)] * len(problem.operations)
        chosen: dict[tuple[int, int, bool], list[tuple[int, int] | None]] = {}
        self.allotments: dict[int, list[int | None]] = {}
        for item, table in zip(problem.items, problem.item_tables, strict=True):
            if id(table) not in self.allotments:
                times = usable(table, problem.accelerators, memory) or usable(table, problem.accelerators)
                self.allotments[id(table)] = by_width(times, widths)
            for v in item:
                own = problem.operations[v].table
                first = v == item[0]  # which stands for the parameters of the whole group
                key = self.keys[v] = (id(table), id(own), first)
                if key not in chosen:
                    chosen[key] = [
                        None if k is None else (own[k].time, table[k].params if first else 0)
                        for k in self.allotments[id(table)]
                    ]
        longest = {key: max((b[0] for b in best if b is not None), default=0) for key, best in chosen.items()}
        self.most = max(1, sum(longest[key] for key in self.keys))
        """No contiguous partition needs a longer period."""
        impossible = (self.most + 1, 0)
        self.rows = {key: [b or impossible for b in best] for key, best in chosen.items()}


class Profile:
    """Prefix sums, over one order, of time and of parameter bytes for each width.

    ``cuts`` are the positions of the order, first and last included, at which stages may begin and end
    (None: any). Everything below counts in cuts: position ``i`` of the profile is ``cuts[i]`` of the order.
    """

    def __init__(self, choices: Choices, order: Sequence[int], reserve: int = 0, cuts: Sequence[int] | None = None):
        everywhere = range(len(order) + 1) if cuts is None else cuts
        self.cuts = _outside(choices.groups, order, everywhere) if choices.groups else tuple(everywhere)
        self.n, self.accelerators, self.widths = len(self.cuts) - 1, choices.accelerators, choices.widths
        self.unusable = choices.unusable
        self.room = choices.memory - reserve if choices.memory else None
        self.most = choices.most
        rows = [choices.rows[choices.keys[v]] for v in order]
        self.time = [self._sums(row[i][0] for row in rows) for i in range(len(self.widths))]
        self.params = [self._sums(row[i][1] for row in rows) for i in range(len(self.widths))]
        self._arrays: list[tuple[Positions, Positions]] | None = None

    def _sums(self, numbers: Iterable[int]) -> list[int]:
        sums = list(accumulate(numbers, initial=0))
        return [sums[at] for at in self.cuts]

    def in_order(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """``stages`` with positions of the order."""
        return tuple(replace(s, begin=self.cuts[s.begin], end=self.cuts[s.end]) for s in stages)

    def extend(self, number: int, begin: int, period: int) -> int:
        """Furthest end of a stage of width ``widths[number]`` that begins at ``begin``."""
        time = self.time[number]
        end = bisect_right(time, time[begin] + period, begin) - 1
        if self.room is not None:
            params = self.params[number]
            end = min(end, bisect_right(params, params[begin] + self.room, begin) - 1)
        return max(end, begin)

    def extend_all(self, number: int, period: int) -> Positions:
        """:meth:`extend` for every beginning at once."""
        if self._arrays is None:
            self._arrays = [(_array(t), _array(p)) for t, p in zip(self.time, self.params, strict=True)]
        time, params = self._arrays[number]
        ends = np.searchsorted(time, time + period, side="right") - 1
        if self.room is not None:
            ends = np.minimum(ends, np.searchsorted(params, params + self.room, side="right") - 1)
        return np.maximum(ends, np.arange(self.n + 1))


def _outside(groups: Sequence[Sequence[int]], order: Sequence[int], cuts: Sequence[int]) -> tuple[int, ...]:
    """Those of ``cuts`` that tear no group apart."""
    position = {v: i for i, v in enumerate(order)}
    inside = [0] * (len(order) + 1)
    for group in groups:
        span = [position[v] for v in group]
        inside[min(span) + 1] += 1
        inside[max(span) + 1] -= 1
    open_groups = list(accumulate(inside))
    return tuple(at for at in cuts if not open_groups[at])


def _array(numbers: list[int]) -> Positions:
    """64-bit integers where sums stay below 2^62, Python integers otherwise."""
    return np.array(numbers, dtype=np.int64 if numbers[-1] < 2**61 else object)
