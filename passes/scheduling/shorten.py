"""Phase 2 for few operations: starts of least latency, when allotments, sets and period are known.

Every accelerator may run its operations in any cyclic order; the offsets in the period and the whole
periods that an operation is delayed are chosen together, by CP-SAT from the starts that are known. Fewer
whole periods between an operation and its readers mean fewer micro-batches in flight and less memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from math import gcd
from typing import Any

from passes.scheduling.budget import Budget
from passes.scheduling.data import Solution
from passes.scheduling.interruptible import solve
from passes.scheduling.lifetimes import held_sets
from passes.scheduling.problem import PeriodicProblem

SECONDS = 10.0
"""A safety stop: the clock of the solver does not count everything that it does."""

MOST_OPERATIONS = 120
"""Operations beyond which the program finds nothing in reasonable time."""


def shorten(problem: PeriodicProblem, solution: Solution, *, work: float = 2.0, budget: Budget) -> Solution:
    """``solution`` with starts of smaller latency, or as it is when none were found within ``work`` units.

    The period and the sets stay. Memory is not looked at. On an interrupt the budget is stopped.
    """
    n = len(problem.operations)
    if not 1 < n <= MOST_OPERATIONS or budget.spent():
        return solution
    from ortools.sat.python import cp_model

    times = [problem.time(solution, v) for v in range(n)]
    unit = reduce(gcd, times, solution.period) or 1
    period, known = solution.period // unit, -(-problem.latency(solution) // unit)
    times = [t // unit for t in times]
    model: Any = cp_model.CpModel()
    latency: Any = model.new_int_var(0, known, "latency")
    starts: list[Any] = []
    offsets: list[Any] = []
    for v in range(n):
        offset = model.new_int_var(0, 2 * period - 1, "")
        lap = model.new_int_var(-1, known // period, "")
        starts.append(offset + period * lap)
        offsets.append(offset)
        model.add(starts[v] >= 0)
        model.add(starts[v] + times[v] <= latency)
    for d in problem.dependences:
        model.add(starts[d.consumer] + d.distance * period >= starts[d.producer] + times[d.producer])
    for _, sharing in held_sets(solution.sets):
        mine = [v for v in sharing if times[v]]
        base = model.new_int_var(0, period - 1, "")  # where the circle is cut open
        model.add_no_overlap([model.new_fixed_size_interval_var(offsets[v], times[v], "") for v in mine])
        for v in mine:
            model.add(offsets[v] >= base)
            model.add(offsets[v] + times[v] <= base + period)
    model.minimize(latency)
    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = budget.seed
    left, allowed = budget.left(), budget.work_left()
    solver.parameters.max_deterministic_time = work if allowed is None else min(work, allowed)
    solver.parameters.max_time_in_seconds = SECONDS if left is None else min(SECONDS, left)
    try:
        status = solve(solver, model)
    except KeyboardInterrupt:
        budget.stop()
        return solution
    budget.spend(solver.response_proto.deterministic_time)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return solution
    found = [unit * solver.value(s) for s in starts]
    first = min(found)
    better = replace(solution, starts=_early(problem, solution, [s - first for s in found]))
    return better if problem.latency(better) < problem.latency(solution) else solution


def _early(problem: PeriodicProblem, solution: Solution, starts: list[int]) -> tuple[int, ...]:
    """Every operation as early as what it reads and the operation before it on its accelerators allow."""
    period = solution.period
    times = [problem.time(solution, v) for v in range(len(starts))]
    reads: list[list[tuple[int, int]]] = [[] for _ in starts]
    for d in problem.dependences:
        reads[d.consumer].append((d.producer, d.distance * period))
    beside: list[set[int]] = [set() for _ in starts]
    for _, sharing in held_sets(solution.sets):
        for v in sharing:
            beside[v].update(u for u in sharing if times[u] and times[v] and u != v)
    for v in problem.topological:
        ready = max((starts[u] + times[u] - ago for u, ago in reads[v]), default=0)
        gap = min(((starts[v] - starts[u] - times[u]) % period for u in beside[v]), default=starts[v])
        starts[v] -= max(0, min(starts[v] - max(0, ready), gap))
    return tuple(starts)
