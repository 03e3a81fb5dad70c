"""Elementary lower bounds on the period: longest operation, area, memory.

All sums run over classes of operations with equal tables, so that a model of a hundred equal blocks
costs what one block costs. Operations that share parameters count as one of their added times, since
they run on the same accelerators in every period.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from passes.scheduling.data import Table
from passes.scheduling.problem import MemoryProblem, MoldableProblem, PeriodicProblem


@dataclass(frozen=True)
class Bound:
    """A proven lower bound on the period, in ns."""

    name: str
    value: int
    leaves_out: str


@dataclass(frozen=True)
class OperationClass:
    """Items with equal tables: (allotment, time, parameter bytes, live bytes times ns) of possible ones, how many."""

    columns: tuple[tuple[int, int, int, int], ...]
    count: int


def usable(table: Table, accelerators: int, memory: int = 0) -> dict[int, int]:
    """Allotment → time of those allotments that the platform has and whose bytes alone fit in memory (0: any)."""
    return {
        k: c.time
        for k, c in table.items()
        if k <= accelerators and (not memory or c.params + c.output + c.workspace <= memory)
    }


def possible(table: Table, accelerators: int, memory: int = 0) -> dict[int, int]:
    """Like :func:`usable`, with every allotment that some schedule might use; bounds must count on those.

    An operation that takes no time holds its parameters for certain, but no output and no workspace.
    """
    return {
        k: c.time
        for k, c in table.items()
        if k <= accelerators and (not memory or c.params + (c.output + c.workspace if c.time else 0) <= memory)
    }


def operation_classes(problem: MoldableProblem) -> list[OperationClass]:
    """The classes of ``problem``, in order of first appearance; a group of operations is one item."""
    memory = problem.memory if isinstance(problem, MemoryProblem) else 0
    by_table: dict[int, tuple[tuple[int, int, int, int], ...]] = {}
    found: Counter[tuple[tuple[int, int, int, int], ...]] = Counter()
    for item, table in zip(problem.items, problem.item_tables, strict=True):
        if id(table) not in by_table:
            rows = [problem.operations[v].table for v in item]
            by_table[id(table)] = tuple(
                (k, time, table[k].params, sum((r[k].output + r[k].workspace) * r[k].time for r in rows))
                for k, time in sorted(possible(table, problem.accelerators, memory).items())
            )
        found[by_table[id(table)]] += 1
    return [OperationClass(columns, count) for columns, count in found.items()]


def least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least integer in ``[low, high]`` where the monotone ``holds`` is true; ``high`` when only there."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def longest_bound(problem: PeriodicProblem) -> Bound:
    """The longest operation (or group) at its fastest allotment: none may take more than a period."""
    value = max((min(t for _, t, _, _ in c.columns) for c in operation_classes(problem) if c.columns), default=0)
    return Bound(_longest_name(problem, value), value, "all other operations")


def _longest_name(problem: PeriodicProblem, value: int) -> str:
    """Whether an operation takes ``value`` at its fastest allotment, or only a group all together."""
    memory = problem.memory if isinstance(problem, MemoryProblem) else 0
    alone = {id(t): t for item, t in zip(problem.items, problem.item_tables, strict=True) if len(item) == 1}
    times = (possible(table, problem.accelerators, memory).values() for table in alone.values())
    longest = max((min(t) for t in times if t), default=0)
    return "longest group" if problem.together and longest < value else "longest operation"


def _stairs(c: OperationClass) -> tuple[list[int], list[int]]:
    """Increasing times of an operation, and the least area among the allotments that take at most each."""
    columns = sorted((t, k * t) for k, t, _, _ in c.columns)
    return [t for t, _ in columns], list(accumulate((area for _, area in columns), min))


def area_bound(problem: PeriodicProblem) -> Bound:
    """Canonical area: accelerators times period hold every operation at its cheapest allotment that meets the period.

    The least ``T`` with ``Σ_v min{k·t_v(k) : t_v(k) ≤ T} ≤ P·T``. It is never below the longest operation
    at its fastest allotment; when it equals that, it takes its name.
    """
    classes = operation_classes(problem)
    longest = longest_bound(problem).value
    accelerators = problem.accelerators

    stairs = [(_stairs(c), c.count) for c in classes if c.columns]

    def fits(period: int) -> bool:
        area = sum(count * areas[bisect_right(times, period) - 1] for (times, areas), count in stairs)
        return area <= accelerators * period

    high = max(longest, sum(c.count * min(k * t for k, t, _, _ in c.columns) for c in classes if c.columns))
    value = least(longest, high, fits)
    if value == longest:
        return Bound(_longest_name(problem, value), value, "how operations pack, memory")
    return Bound("area", value, "how operations pack, memory")


def memory_bound(problem: PeriodicProblem) -> Bound | None:
    """Little's law for bytes: what is live on average, times how long, fits beside the parameters.

    An operation holds its output and workspace while it runs, on all its accelerators, so
    ``Σ_v min_k k·params + Σ_v min_k k·(output+workspace)·t_v(k) / T ≤ P·M``. None when memory is not limited.
    """
    if not isinstance(problem, MemoryProblem) or not problem.memory:
        return None
    classes = [c for c in operation_classes(problem) if c.columns]
    params = sum(c.count * min(k * p for k, _, p, _ in c.columns) for c in classes)
    live = sum(c.count * min(k * b for k, _, _, b in c.columns) for c in classes)
    room = problem.memory * problem.accelerators - params
    value = -(-live // room) if room > 0 else 0
    return Bound("memory", value, "values that wait for their readers, and that parameters are not divisible")
