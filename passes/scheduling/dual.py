"""Lower bound by dual feasible functions, proven in integers.

A function ``f`` on [0, 1] is *dual feasible* when any numbers that sum to at most 1 have images that sum
to at most 1. On one accelerator the operations of a period have ``Σ t/T ≤ 1``, so ``Σ f(t/T) ≤ 1``; over
all accelerators ``Σ_v k_v·f(t_v(k_v)/T) ≤ P``. The same holds for the fraction of memory an operation
takes, parameters and what is live on average. A weighted mean of such functions is another one. A
linear program over classes of equal operations finds the weights under which the operations, each at its
cheapest allotment, exceed ``P`` most; when they do, no schedule of period ``T`` or less exists. The weights
come from floating point, the proof does not: they are rounded, and the sum is taken in integers.

Functions from Fekete and Schepers, "New classes of fast lower bounds for bin packing problems",
Mathematical Programming 91 (2001).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

from passes.scheduling.budget import Budget
from passes.scheduling.elementary import Bound, OperationClass, area_bound, operation_classes
from passes.scheduling.problem import MemoryProblem, PeriodicProblem

Column = tuple[int, int, int, int]
"""Allotment, time, parameter bytes, live bytes times ns."""

PRECISION = 10**6
"""Weights are rounded to this fraction."""

MOST_COLUMNS = 30_000
"""Larger instances are left to the area bound, which is tight when operations are many."""


@dataclass(frozen=True)
class Measure:
    """What a column takes of each accelerator, as a fraction ``numerator(column) / denominator``."""

    name: str
    numerator: Callable[[Column], int]
    denominator: int


def time_measures(period: int, times: Sequence[int]) -> list[Measure]:
    """Dual feasible functions of time over ``period``; ``times`` are thresholds worth trying."""
    measures = [Measure("time", lambda c: c[1], period)]
    measures += [_rounded(period, parts) for parts in range(1, 7)]
    measures += [_above(period, parts) for parts in range(2, 7)]
    for least in _thresholds(period, times):
        measures += [_large(period, least), _counted(period, least)]
    return measures


def _rounded(period: int, parts: int) -> Measure:
    """``x`` where ``(parts+1)·x`` is whole, else ``⌊(parts+1)·x⌋ / parts``."""

    def numerator(c: Column) -> int:
        scaled = c[1] * (parts + 1)
        return c[1] * parts if scaled % period == 0 else scaled // period * period

    return Measure(f"rounded to {parts}", numerator, period * parts)


def _above(period: int, parts: int) -> Measure:
    """``(⌈parts·x⌉ - 1) / (parts - 1)``: how many of that many equal parts an operation exceeds."""
    return Measure(f"above {parts} parts", lambda c: max(0, -(-c[1] * parts // period) - 1), parts - 1)


def _large(period: int, least: int) -> Measure:
    """0 below ``least``, 1 above ``period - least``, ``x`` between: what is long leaves no room for the short."""

    def numerator(c: Column) -> int:
        return 0 if c[1] < least else period if c[1] > period - least else c[1]

    return Measure(f"from {least} ns", numerator, period)


def _counted(period: int, least: int) -> Measure:
    """Operations of at least ``least`` count equally; one longer than half the period leaves room for few of them."""
    most = period // least

    def numerator(c: Column) -> int:
        if c[1] < least:
            return 0
        return 1 if 2 * c[1] <= period else most - (period - c[1]) // least

    return Measure(f"counted from {least} ns", numerator, most)


def _thresholds(period: int, times: Sequence[int]) -> list[int]:
    """At most twelve thresholds in (0, period/2], at and just beyond times that occur."""
    found = sorted({t for s in times for t in (s, s + 1, period - s + 1) if 0 < 2 * t <= period})
    step = -(-len(found) // 12) or 1
    return found[::-1][::step]


def memory_measure(period: int, memory: int) -> Measure:
    """Parameters, and output and workspace for the part of the period that the operation runs."""
    return Measure("memory", lambda c: c[2] * period + c[3], memory * period)


def proves(
    classes: Sequence[OperationClass], accelerators: int, period: int, measures: Sequence[Measure]
) -> tuple[str, ...] | None:
    """Names of the measures that together prove that no schedule has a period of at most ``period``; None without."""
    usable = [[c for c in each.columns if c[1] <= period] for each in classes]
    if not all(usable):
        return ("time",)
    weights = _weights(classes, usable, accelerators, measures)
    used = [(m, w) for m, w in zip(measures, weights, strict=True) if w > 0]
    if not used:
        return None
    common = lcm(*(m.denominator for m, _ in used))
    scaled = [(m.numerator, w * (common // m.denominator)) for m, w in used]
    total = sum(
        each.count * min(c[0] * sum(f(c) * w for f, w in scaled) for c in columns)
        for each, columns in zip(classes, usable, strict=True)
    )
    return tuple(m.name for m, _ in used) if total > accelerators * common * sum(w for _, w in used) else None


def _weights(
    classes: Sequence[OperationClass],
    usable: Sequence[Sequence[Column]],
    accelerators: int,
    measures: Sequence[Measure],
) -> list[int]:
    """Duals of: share out allotments so that the most used measure is used least."""
    from ortools.linear_solver import pywraplp  # pyright: ignore[reportMissingTypeStubs]

    library: Any = pywraplp  # which has no types
    solver = library.Solver.CreateSolver("GLOP")
    infinity = solver.infinity()
    most = solver.NumVar(0.0, infinity, "")
    solver.Minimize(most)
    rows: list[Any] = [solver.Constraint(-infinity, 0.0) for _ in measures]
    for row in rows:
        row.SetCoefficient(most, -1.0)
    scales = [m.denominator * accelerators for m in measures]
    for each, group in zip(classes, usable, strict=True):
        shared = solver.Constraint(float(each.count), float(each.count))
        for c in group:
            part = solver.NumVar(0.0, infinity, "")
            shared.SetCoefficient(part, 1.0)
            for measure, row, scale in zip(measures, rows, scales, strict=True):
                taken = measure.numerator(c)
                if taken:
                    row.SetCoefficient(part, c[0] * taken / scale)
    if solver.Solve() != library.Solver.OPTIMAL:
        return [0] * len(measures)
    return [max(0, round(-row.dual_value() * PRECISION)) for row in rows]


def _memory(problem: PeriodicProblem) -> int:
    return problem.memory if isinstance(problem, MemoryProblem) else 0


def _classes(problem: PeriodicProblem) -> list[OperationClass]:
    """The classes with a possible allotment; none when they are too many."""
    classes = [c for c in operation_classes(problem) if c.columns]
    return classes if sum(len(c.columns) for c in classes) <= MOST_COLUMNS else []


def _measures(problem: PeriodicProblem, classes: Sequence[OperationClass], period: int) -> list[Measure]:
    times = sorted({t for c in classes for _, t, _, _ in c.columns})
    measures = time_measures(period, times)
    if memory := _memory(problem):
        measures.append(memory_measure(period, memory))
    return measures


def dual_excludes(problem: PeriodicProblem, period: int) -> bool:
    """Whether :func:`proves` excludes schedules of at most ``period``, which the area may exclude as well."""
    classes = _classes(problem)
    if not classes or period < 1:
        return False
    return proves(classes, problem.accelerators, period, _measures(problem, classes, period)) is not None


def dual_bound(problem: PeriodicProblem, budget: Budget | None = None) -> Bound | None:
    """The greatest period that :func:`proves` excludes, plus one; None when the area bound is as good.

    A proof for one period excludes every shorter one, since a schedule can always be stretched by idle
    time; so the search may stop anywhere, and it stops at a precision of 1/10000. Of periods in which all
    operations can run one after the other only memory excludes some, and where it excludes all of them there
    is no schedule: the search ends soon after.
    """
    budget = budget or Budget()
    classes = _classes(problem)
    if not classes:
        return None

    def excluded(period: int) -> tuple[str, ...] | None:
        return proves(classes, problem.accelerators, period, _measures(problem, classes, period))

    low = area_bound(problem).value - 1
    high, step = low + 1, max(1, low // 100)
    most = low + 1 + sum(c.count * max(column[1] for column in c.columns) for c in classes)
    by: tuple[str, ...] | None = None
    while 0 < high <= most and not budget.spent() and (found := excluded(high)) is not None:
        low, by, high, step = high, found, high + step, 2 * step
    if by is None:
        return None
    while high - low > max(1, high // 10000) and not budget.spent():
        middle = (low + high) // 2
        found = excluded(middle)
        if found is None:
            high = middle
        else:
            low, by = middle, found
    name = "dual feasible functions" + (" and memory" if "memory" in by else "")
    return Bound(name, low + 1, "which operations meet on an accelerator" + ("" if _memory(problem) else ", memory"))
