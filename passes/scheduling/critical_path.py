"""Lower bounds on the period when latency or the number of micro-batches in flight is limited.

With at most ``F`` in flight the latency is at most ``F·T``, and no path of dependences takes longer than the latency.
The fastest allotments alone give ``T ≥ path / F``. But fast allotments cost area, of which there is ``P·T``. For any
paths ``p_1 … p_N``, ``n_v`` of which go through ``v``, and any multiplier ``λ = a/b ≥ 0``, every schedule has ::

    Σ_v min_k (b·N·k + a·n_v)·t_v(k)  ≤  N·(b·P·T + a·limit(T)),     t_v(k) ≤ T

(Lagrangian relaxation of the discrete time-cost tradeoff). Paths and multiplier come from a search, the
inequality is checked in integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

from passes.scheduling.budget import Budget
from passes.scheduling.elementary import Bound, area_bound, possible
from passes.scheduling.exclusion import greatest_excluded
from passes.scheduling.problem import MemoryProblem, PeriodicProblem

MOST_PATHS = 4
"""Paths looked at together."""

PARTS = 1024
"""Multipliers are multiples of one part in this many."""

OPERATIONS_A_UNIT = 1_000_000
"""Operations looked at that count as one unit of work."""

Columns = tuple[tuple[int, int], ...]
"""(Allotment, time) of an operation."""


def in_flight_bound(problem: PeriodicProblem, most: int, budget: Budget | None = None) -> Bound | None:
    """The least period with at most ``most`` ≥ 1 micro-batches in flight, as far as paths and area tell.

    None when the area bound is as good.
    """
    return _bound(problem, f"at most {most} in flight", lambda period: most * period, budget or Budget())


def latency_bound(problem: PeriodicProblem, latency: int, budget: Budget | None = None) -> Bound | None:
    """The least period with a latency of at most ``latency`` ns: short paths need fast allotments, which cost area.

    None when the area bound is as good, and when no schedule at all has this latency.
    """
    return _bound(problem, f"latency at most {latency} ns", lambda _: latency, budget or Budget())


def paths_exclude(problem: PeriodicProblem, period: int, limit: int, budget: Budget | None = None) -> bool:
    """Whether paths and area prove that no schedule of at most ``period`` has a latency of at most ``limit``."""
    return _Paths(problem).exclude(period, limit, budget or Budget())


def _bound(problem: PeriodicProblem, name: str, limit: Callable[[int], int], budget: Budget) -> Bound | None:
    paths = _Paths(problem)
    if not paths.columns or not all(paths.columns):
        return None
    serial = max(1, sum(max(t for _, t in columns) for columns in paths.columns))
    if paths.shortest() > limit(serial):
        return None
    found = greatest_excluded(
        area_bound(problem).value - 1,
        serial,
        lambda period, part: name if paths.exclude(period, limit(period), part) else None,
        budget,
    )
    leaves_out = "which operations meet on an accelerator, and memory"
    return None if found is None else Bound(name, found[0] + 1, leaves_out)


class _Paths:
    """Columns of the operations, and paths through them."""

    def __init__(self, problem: PeriodicProblem):
        self.problem = problem
        memory = problem.memory if isinstance(problem, MemoryProblem) else 0
        known: dict[int, Columns] = {}
        for operation in problem.operations:
            if id(operation.table) not in known:
                times = possible(operation.table, problem.accelerators, memory)
                known[id(operation.table)] = tuple(sorted(times.items()))
        self.columns = [known[id(operation.table)] for operation in problem.operations]

        copies: int = getattr(problem, "copies", 1)
        self.copies = copies
        """Most copies of an operation that take turns: its time may be that many periods."""

    @cached_property
    def fastest(self) -> list[int]:
        """Least time of each operation."""
        return [min(t for _, t in columns) for columns in self.columns]

    def shortest(self) -> int:
        """The longest path with every operation at its fastest."""
        return self.length(self.longest(self.fastest), self.fastest)

    def longest(self, times: Sequence[int]) -> list[int]:
        """The operations of a longest path."""
        end = [0] * len(times)
        before = [-1] * len(times)
        for v in self.problem.topological:
            for u in self.problem.predecessors[v]:
                if before[v] < 0 or end[u] > end[before[v]]:
                    before[v] = u
            end[v] = times[v] + (end[before[v]] if before[v] >= 0 else 0)
        path: list[int] = []
        v = max(range(len(times)), key=lambda u: end[u], default=-1)
        while v >= 0:
            path.append(v)
            v = before[v]
        return path

    def length(self, path: Sequence[int], times: Sequence[int]) -> int:
        """Time along a path."""
        return sum(times[v] for v in path)

    def exclude(self, period: int, limit: int, budget: Budget) -> bool:
        """Whether no allotments that meet ``period`` keep its area with all paths of at most ``limit``."""
        columns = [tuple(c for c in each if c[1] <= period * self.copies) for each in self.columns]
        if not all(columns):
            return True
        path = self.longest(self.fastest)
        if self.length(path, self.fastest) > limit:
            return True
        through: Counter[int] = Counter()
        for many in range(1, MOST_PATHS + 1):
            through.update(path)
            groups = Counter((columns[v], through[v]) for v in range(len(columns)))
            budget.spend(len(columns) / OPERATIONS_A_UNIT)
            found = _multiplier(groups, many, self.problem.accelerators * period, limit)
            if found is None:
                return True
            times = [_cheapest(columns[v], many * PARTS, found * through[v])[1] for v in range(len(columns))]
            path = self.longest(times)
            if self.length(path, times) <= limit or budget.spent():
                return False
        return False


def _cheapest(columns: Columns, area: int, time: int) -> tuple[int, int]:
    """The column of least ``(area·k + time)·t``; of equal ones the fastest."""
    return min(columns, key=lambda c: ((area * c[0] + time) * c[1], c[1]))


def _multiplier(groups: Counter[tuple[Columns, int]], many: int, area: int, limit: int) -> int | None:
    """The multiplier, in parts, at which the paths just keep the limit; None when one proves that they cannot."""

    def proves(parts: int) -> tuple[bool, int]:
        total = length = 0
        for (columns, through), count in groups.items():
            k, t = _cheapest(columns, many * PARTS, parts * through)
            total += count * (many * PARTS * k + parts * through) * t
            length += count * through * t
        return total > many * (PARTS * area + parts * limit), length

    low, high = 0, PARTS
    while True:
        done, length = proves(high)
        if done:
            return None
        if length <= many * limit or high > PARTS**4:
            break
        low, high = high, 4 * high
    while high - low > max(1, high // 256):
        middle = (low + high) // 2
        done, length = proves(middle)
        if done:
            return None
        if length <= many * limit:
            high = middle
        else:
            low = middle
    return None if proves(low)[0] else high
